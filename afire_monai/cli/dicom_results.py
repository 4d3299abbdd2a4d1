"""``afire dicom-results``: predictions as DICOM objects that go back to where the radiographs came from."""

from __future__ import annotations

from afire_monai.core.errors import AfireError


def dicom_results(
    predictions: str,
    *,
    out: str,
    index: str | None = None,
    kinds: tuple[str, ...] | None = None,
    quiet: bool = False,
) -> int:
    """Write predictions as DICOM: a structured report, the heatmap as a segmentation, a picture of both.

    The objects belong to the study of their radiograph and name its patient, as a PACS needs it: keep them like the
    radiographs. Exit status: 0 all images written, 1 some left out (left_out.csv says why), 2 none or a wrong command.

    Example: afire dicom-results results --out results_dicom

    Example: afire dicom-results results --index ingested/private/index.csv --out results_dicom

    Args:
        predictions: folder of afire predict.
        out: new or empty folder to write into.
        index: table that says which file an image is: private/index.csv of afire ingest, or columns index and file;
            the predictions' own index.csv unless given.
        kinds: sr (report), seg (heatmap), sc (picture), with commas between them; all that there is something for
            unless given.
        quiet: no progress bar.
    """
    try:
        import highdicom  # noqa: F401  # needed by what is imported next, and not there without the extra
    except ImportError as error:
        raise AfireError("highdicom is not installed: pip install 'afire-monai[dicom]'") from error
    from afire_monai.dicom_results.folder import OBJECTS, write_dicom_results
    from afire_monai.predictions.results import LEFT_OUT

    done = write_dicom_results(predictions, out, index, kinds, progress=not quiet)
    counts = ", ".join(f"{kind} {count}" for kind, count in done.objects.items())
    print(f"written:  {done.done} of {done.total} images" + (f" ({counts})" if counts else ""))
    if done.left_out:
        print(f"left out: {len(done.left_out)}; {LEFT_OUT} says why")
        for number, reason in sorted(done.left_out.items())[:5]:
            print(f"  image {number}: {reason}")
    print(f"results:  {out} (they name patients; {OBJECTS} says which file is what)")
    if done.done:
        print(f"next:     afire send {out} --dicomweb ADDRESS")
    return done.status
