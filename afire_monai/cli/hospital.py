"""Commands of a hospital: ``afire ingest``, ``afire dicom-results`` and ``afire send``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afire_monai.cli.fronts import front
from afire_monai.cli.predictions import exception_lines
from afire_monai.core.errors import AfireError


@front("afire_monai.hospital.ingest:ingest", "*inputs", hide=("seconds_per_file",))
def ingest(
    work: Callable[..., Any],
    *,
    inputs: Sequence[str] = (),
    out: str,
    dicomweb: str | None = None,
    modality: Sequence[str] = ("CR", "DX"),
    date: str | None = None,
    description: Sequence[str] = (),
    forget_originals: bool = False,
    server: Mapping[str, Any],
    progress: bool = True,
    **options: Any,
) -> int:
    """Make a data list of the frontal chest radiographs in DICOM folders, without names, numbers, dates and places.

    The source is only read. An interrupted run resumes where it stopped, and files that have not changed are not
    read again. OUT/private (key, index, state) stays with the hospital; everything else names nobody.

    Example: afire ingest archive --out chest

    Example: afire ingest archive --out chest --labels findings.csv --join accession --label-columns Effusion,Edema

    Example: afire ingest archive --out chest --allow age,sex,view --split-by date:2023-01-01,2024-01-01

    Example: afire ingest --dicomweb https://pacs.example/dicom-web --date 20230101-20231231 --out chest

    Args:
        dicomweb: address of a server to fetch radiographs from, into OUT/private/dicom. Credentials come from the
            environment (AFIRE_DICOMWEB_USER and _PASSWORD, or AFIRE_DICOMWEB_TOKEN) or ~/.netrc.
        modality: of the series to fetch.
        date: of the studies to fetch, YYYYMMDD-YYYYMMDD; either end may be left out.
        description: words of which the study's or the series' description must hold one, whatever the case.
        forget_originals: delete what was fetched when all is done; DICOM results need it.
    """
    fetched = None
    if dicomweb is not None:
        from afire_monai.hospital.dicomweb.client import DicomWeb, Query
        from afire_monai.hospital.dicomweb.transfer import fetch

        query = Query.of(modality, date, description)
        fetched = fetch(DicomWeb(dicomweb, **server), query, out, progress=progress)
        print("\n".join(fetched.lines()))
        inputs = [*inputs, str(fetched.folder)]
    elif date or description or forget_originals or server.get("ca") or server.get("insecure"):
        raise AfireError("--date, --description, --forget-originals, --ca and --insecure go with --dicomweb")
    done = work(inputs, out, progress=progress, **options)
    print("\n".join(done.lines()))
    if fetched and forget_originals:
        print(f"deleted:  {fetched.forget()} retrieved files")
    print(f"read now: {done.headers_read} headers, {done.images_read} images")
    print(f"written: {out}/datalist.json, datacard.html, left_out.csv (reasons); {out}/private stays with the hospital")
    print(f"next:    afire check {out}/datalist.json")
    return fetched.transfer.status if fetched else 0


@front("afire_monai.hospital.dicomweb.transfer:send_folder", "folder", hide=("web",))
def send(
    work: Callable[..., Any],
    *,
    dicomweb: str,
    server: Mapping[str, Any],
    failures: str | None = None,
    **options: Any,
) -> int:
    """Store every DICOM file of a folder on a DICOMweb server (STOW-RS), for example results in a PACS.

    Credentials come from the environment, AFIRE_DICOMWEB_USER and AFIRE_DICOMWEB_PASSWORD, or AFIRE_DICOMWEB_TOKEN;
    else from ~/.netrc (mode 0600). Exit status: 0 all are there, 1 some failed, 2 none is there or a wrong command.

    Example: afire send results_dicom --dicomweb https://pacs.example/dicom-web

    Args:
        dicomweb: address of the server, without user name and password.
        failures: CSV file to write what failed into; it names files, so only its owner can read it.
    """
    from afire_monai.hospital.dicomweb.client import DicomWeb

    done = work(DicomWeb(dicomweb, **server), **options)
    print(f"stored:   {done.done}")
    if done.already:
        print(f"there:    {done.already} the server had already")
    if done.skipped:
        print(f"skipped:  {done.skipped} files that are no DICOM objects")
    if done.failed:
        print(f"failed:   {len(done.failed)}" + ("" if failures else "; --failures FILE says which"))
        for reason, count in done.reasons()[:5]:
            print(f"  {count} x {reason}")
    if failures:
        done.write_failures(Path(failures))
    return int(done.status)


@front("afire_monai.dicom_results.folder:write_dicom_results", "predictions")
def dicom_results(work: Callable[..., Any], *, out: str, **options: Any) -> int:
    """Write predictions as DICOM: a structured report, the heatmap as a segmentation, a picture of both.

    The objects belong to the study of their radiograph and name its patient, as a PACS needs it: keep them like the
    radiographs. Exit status: 0 all images written, 1 some left out (left_out.csv says why), 2 none or a wrong command.

    Example: afire dicom-results results --out results_dicom

    Example: afire dicom-results results --index ingested/private/index.csv --out results_dicom

    Args:
        index: table that says which file an image is: private/index.csv of afire ingest, or columns index and file;
            the predictions' own index.csv unless given.
        kinds: sr (report), seg (heatmap), sc (picture), with commas between them; all that there is something for
            unless given.
    """
    try:
        import highdicom  # noqa: F401  # needed by what is imported next, and not there without the extra
    except ImportError as error:
        raise AfireError("highdicom is not installed: pip install 'afire-monai[dicom]'") from error
    from afire_monai.dicom_results.folder import OBJECTS

    done = work(out=out, **options)
    counts = ", ".join(f"{kind} {count}" for kind, count in done.objects.items())
    print(f"written:  {done.done} of {done.total} images" + (f" ({counts})" if counts else ""))
    for line in exception_lines(done.left_out, done.unfit):
        print(line)
    print(f"results:  {out} (they name patients; {OBJECTS} says which file is what)")
    if done.done:
        print(f"next:     afire send {out} --dicomweb ADDRESS")
    return int(done.status)
