"""Commands of a hospital: ``afire ingest``, ``afire dicom-results`` and ``afire send``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afire_monai.core.errors import AfireError

if TYPE_CHECKING:
    from afire_monai.hospital.dicomweb.transfer import Fetched


def ingest(
    *inputs: str,
    out: str,
    labels: str | None = None,
    join: str = "accession",
    join_column: str | None = None,
    label_columns: tuple[str, ...] | None = None,
    labels_column: str | None = None,
    label_separator: str = "|",
    delimiter: str | None = None,
    encoding: str | None = None,
    normal_label: str = "Normal",
    allow: tuple[str, ...] | None = None,
    key: str | None = None,
    split: tuple[float, ...] = (0.7, 0.1, 0.2),
    split_by: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    include_laterals: bool = False,
    max_side: int = 1024,
    check_text: bool = False,
    accept_text: bool = False,
    name: str = "hospital",
    dicomweb: str | None = None,
    modality: tuple[str, ...] = ("CR", "DX"),
    date: str | None = None,
    description: tuple[str, ...] | None = None,
    forget_originals: bool = False,
    ca: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    insecure: bool = False,
    quiet: bool = False,
) -> int:
    """Make a data list of the frontal chest radiographs in DICOM folders, without names, numbers, dates and places.

    The source is only read. An interrupted run goes on where it stopped, and files that have not changed are not
    read again. What is in OUT/private (key, index, state) stays with the hospital; everything else names nobody.

    Example: afire ingest archive --out chest

    Example: afire ingest archive --out chest --labels findings.csv --join accession --label-columns Effusion,Edema

    Example: afire ingest archive --out chest --allow age,sex,view --split-by date:2023-01-01,2024-01-01

    Example: afire ingest --dicomweb https://pacs.example/dicom-web --date 20230101-20231231 --out chest

    Args:
        inputs: folders, DICOMDIR files or single DICOM files.
        out: folder to write into.
        labels: CSV of labels.
        join: what labels are joined by; accession, patient, study or file.
        join_column: the CSV's column of it, unless it has a usual name such as AccessionNumber.
        label_columns: columns of one finding each, with 1, 0, -1 (uncertain) or nothing.
        labels_column: instead, one column of names of findings.
        label_separator: between these names.
        delimiter: between the cells of that table: , ; or tab; found out unless given.
        encoding: of that table: utf-8, utf-16, cp1252, …; found out unless given.
        normal_label: the finding that means "no finding".
        allow: tags that may go into the data list, out of age (in bands), sex, view, manufacturer_model.
        key: identity key of an earlier OUT, so that patients have the same hashes in both.
        split: shares of training, validation and test.
        split_by: date:YYYY-MM-DD,YYYY-MM-DD (first days of validation and test) or site, instead of shares.
        seed: of the split.
        workers: processes that read; the number of cores unless given.
        include_laterals: keep lateral views as well.
        max_side: longest side of the pictures in pixels.
        check_text: leave out pictures with what looks like text near the border.
        accept_text: with --check-text, keep them and count them.
        name: of the data list.
        dicomweb: address of a server to fetch radiographs from, into OUT/private/dicom. Credentials come from the
            environment (AFIRE_DICOMWEB_USER and _PASSWORD, or AFIRE_DICOMWEB_TOKEN) or ~/.netrc.
        modality: of the series to fetch.
        date: of the studies to fetch, YYYYMMDD-YYYYMMDD; either end may be left out.
        description: words of which the study's or the series' description must hold one, whatever the case.
        forget_originals: delete what was fetched when all is done; DICOM results need it.
        ca: PEM file of the authorities to trust instead of the built-in ones.
        timeout: seconds to wait for the server.
        retries: how often to repeat a request that got no answer.
        insecure: allow credentials over plain http to another machine.
        quiet: no progress bars.
    """
    from afire_monai.hospital.ingest import ingest as run

    fetched = None
    if dicomweb is not None:
        fetched = _fetch(dicomweb, out, (modality, date, description or ()), (timeout, retries, ca, insecure), quiet)
    elif date or description or forget_originals or ca or insecure:
        raise AfireError("--date, --description, --forget-originals, --ca and --insecure go with --dicomweb")
    done = run(
        [*inputs, *([fetched.folder] if fetched else [])], out,
        labels=labels, join=join, join_column=join_column, label_columns=label_columns,
        labels_column=labels_column, label_separator=label_separator, delimiter=delimiter,
        encoding=encoding, normal_label=normal_label, allow=allow or (),
        key=key, split=split, split_by=split_by, seed=seed, workers=workers, include_laterals=include_laterals,
        max_side=max_side, check_text=check_text, accept_text=accept_text, name=name, progress=not quiet,
    )  # fmt: skip
    print(f"seen: {done.seen} files; kept: {done.kept} images of {done.patients} patients")
    for reason, count in done.left_out.items():
        print(f"  left out, {reason}: {count}")
    print("sections: " + ", ".join(f"{section} {count}" for section, count in done.sections.items()))
    for what, figure in done.labels.items():
        if isinstance(figure, int):
            print(f"  labels, {what.replace('_', ' ')}: {figure}")
    for remark in done.remarks:
        print(f"note: {remark}")
    if fetched and forget_originals:
        print(f"deleted:  {fetched.forget()} retrieved files")
    print(f"read now: {done.headers_read} headers, {done.images_read} images")
    print(f"written: {out}/datalist.json, datacard.html, left_out.csv (reasons); {out}/private stays with the hospital")
    print(f"next:    afire check {out}/datalist.json")
    return fetched.transfer.status if fetched else 0


def _fetch(
    url: str,
    out: str,
    wanted: tuple[Sequence[str], str | None, Sequence[str]],
    connection: tuple[float, int, str | None, bool],
    quiet: bool,
) -> Fetched:
    from afire_monai.hospital.dicomweb.client import DicomWeb, Query
    from afire_monai.hospital.dicomweb.transfer import fetch

    query = Query.of(*wanted)
    fetched = fetch(DicomWeb(url, *connection), query, out, progress=not quiet)
    print("\n".join(fetched.lines()))
    return fetched


def send(
    folder: str,
    *,
    dicomweb: str,
    ca: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    insecure: bool = False,
    failures: str | None = None,
    quiet: bool = False,
) -> int:
    """Store every DICOM file of a folder on a DICOMweb server (STOW-RS), for example results in a PACS.

    Credentials come from the environment, AFIRE_DICOMWEB_USER and AFIRE_DICOMWEB_PASSWORD, or AFIRE_DICOMWEB_TOKEN;
    else from ~/.netrc (mode 0600). Exit status: 0 all are there, 1 some failed, 2 none is there or a wrong command.

    Example: afire send results_dicom --dicomweb https://pacs.example/dicom-web

    Args:
        folder: searched with its subfolders; files that are not DICOM are passed over. One file is possible too.
        dicomweb: address of the server, without user name and password.
        ca: PEM file of the authorities to trust instead of the built-in ones.
        timeout: seconds to wait for a connection or a part of an answer.
        retries: how often to repeat a request that got no answer.
        insecure: allow credentials over plain http to another machine.
        failures: CSV file to write what failed into; it names files, so only its owner can read it.
        quiet: no progress bar.
    """
    from afire_monai.hospital.dicomweb.client import DicomWeb
    from afire_monai.hospital.dicomweb.transfer import send_folder

    web = DicomWeb(dicomweb, timeout, retries, ca, insecure)
    done = send_folder(web, folder, progress=not quiet)
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
    return done.status


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
