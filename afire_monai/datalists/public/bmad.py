"""The chest radiographs of BMAD (Bao et al., CVPR workshops 2024), and data sets with the same layout."""

from __future__ import annotations

from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.common import Files, Gathered, find_files, finish

LABELS = (DEFAULT_NORMAL, "Abnormal")
SECTION = {"train": "training", "valid": "validation", "val": "validation", "test": "test"}
SUFFIXES = (".png", ".jpg", ".jpeg")


def datalist_from_bmad(folder: StrPath, out: StrPath | None = None) -> DataList:
    """Build the list of the anomaly benchmark BMAD, or a set laid out alike: normal or abnormal, official split.

    Read are ``train/good``, ``valid/good``, ``valid/Ungood``, ``test/good`` and ``test/Ungood``, where pictures lie
    directly or in ``img``, with masks of the same names in ``label``. The set tells no patients, so each picture counts
    as one.

    Args:
        folder: folder that holds ``train`` and ``test``; or the one above, if a single folder named after the chest
            holds them.
    """
    root = _root(Path(folder))
    gathered = Gathered(list(LABELS))
    for part, section in SECTION.items():
        for place in sorted(path for path in (root / part).glob("*") if path.is_dir()):
            kind = place.name.lower()
            if kind not in ("good", "ungood"):
                raise DataListError(f"{place}: folders good and Ungood are expected. Move it away")
            images, masks = _files(place, "img"), _files(place, "label") if (place / "label").is_dir() else None
            for name, path in sorted(images.items()):
                mask = str(masks[name].absolute()) if masks is not None and name in masks else None
                gathered.skipped["no_mask_but_kept"] += masks is not None and mask is None
                label = [int(kind == "good"), int(kind == "ungood")]
                gathered.add(section, path, path.relative_to(root).as_posix(), label, mask=mask)
    gathered.facts["split"] = "official"
    return finish("bmad-chest", gathered, root, out, official=("validation", "test"))


def _files(place: Path, below: str) -> Files:
    return find_files(place / below if (place / below).is_dir() else place, SUFFIXES, masks=True)


def _root(folder: Path) -> Path:
    inside = [path for path in sorted(folder.glob("*")) if "chest" in path.name.lower() or "rsna" in path.name.lower()]
    found = [path for path in (folder, *inside) if (path / "train" / "good").is_dir()]
    if len(found) == 1 or found[:1] == [folder]:
        return found[0]
    seen = " and ".join(map(str, found)) or "no train/good"
    raise DataListError(f"{folder}: {seen} in it; one folder with train/good, valid and test is expected. Name it")
