"""``afire ingest``: from a hospital's DICOM files to a data list that names nobody."""

from __future__ import annotations

from collections.abc import Sequence
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
        labels_column=labels_column, label_separator=label_separator, normal_label=normal_label, allow=allow or (),
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
