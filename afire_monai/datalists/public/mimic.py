"""MIMIC-CXR-JPG 2.0.0 (Johnson et al., 2019)."""

from __future__ import annotations

from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import facts_of, parse_label
from afire_monai.datalists.csv_table import one_row_each, read_table
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.chexpert import NO_FINDING, label_set
from afire_monai.datalists.public.common import Gathered, Unmentioned, check_unmentioned, finish, first_file

SECTION = {"train": "training", "validate": "validation", "test": "test"}
FRONTAL = ("PA", "AP")
KEY = ["dicom_id", "subject_id", "study_id"]


def datalist_from_mimic(
    folder: StrPath,
    out: StrPath | None = None,
    labels: str = "chexpert14",
    unmentioned: Unmentioned = "negative",
    views: tuple[str, ...] = FRONTAL,
) -> DataList:
    """Build the list of MIMIC-CXR-JPG: labels of CheXpert's labeller, official split.

    Read are ``mimic-cxr-2.0.0-chexpert``, ``-metadata`` and ``-split`` (``.csv.gz`` or ``.csv``) and
    ``files/p10/p…/s…/….jpg``. Labels are those of the whole study, mined from its report by CheXpert's labeller;
    studies without report labels are left out. "No Finding" becomes the label "Normal".

    Args:
        folder: folder that holds mimic-cxr-2.0.0-chexpert.csv.gz, -metadata, -split and files.
        labels: ``chexpert14`` or ``chexpert5``.
        unmentioned: a blank cell is ``negative`` (0) or ``missing`` (null).
        views: values of ``ViewPosition`` to take.
    """
    root = Path(folder)
    blank, wanted = check_unmentioned(unmentioned), label_set(labels)
    table = first_file(root, "mimic-cxr-2.*-chexpert.csv.gz", "mimic-cxr-2.*-chexpert.csv")
    studies = {}
    for study, row in one_row_each(read_table(table, ["subject_id", "study_id", *wanted]), "study_id").items():
        studies[study] = [parse_label(row, name, blank) for name in wanted]
    metadata = first_file(root, "mimic-cxr-2.*-metadata.csv.gz", "mimic-cxr-2.*-metadata.csv")
    view_of = {row["dicom_id"]: row["ViewPosition"] for row in read_table(metadata, ["dicom_id", "ViewPosition"])}
    split = first_file(root, "mimic-cxr-2.*-split.csv.gz", "mimic-cxr-2.*-split.csv")
    gathered = Gathered([DEFAULT_NORMAL if name == NO_FINDING else name for name in wanted])
    for row in one_row_each(read_table(split, [*KEY, "split"]), "dicom_id").values():
        if row["split"] not in SECTION:
            raise DataListError(f"{row.where('split')}: {row['split']!r}; one of {', '.join(SECTION)} is expected")
        view = view_of.get(row["dicom_id"], "")
        subject, study = f"p{row['subject_id']}", f"s{row['study_id']}"
        image = root / "files" / subject[:3] / subject / study / f"{row['dicom_id']}.jpg"
        reason = "other_view" if view not in views else "no_report_label" if row["study_id"] not in studies else None
        if reason is None and not image.is_file():
            reason = "missing_image"
        if reason is not None:
            gathered.skipped[reason] += 1
            continue
        gathered.add(SECTION[row["split"]], image, subject, studies[row["study_id"]], **facts_of(view=view))
    gathered.facts |= {"split": "official", "unmentioned": unmentioned}
    return finish("mimic-cxr", gathered, root, out, official=("validation", "test"))
