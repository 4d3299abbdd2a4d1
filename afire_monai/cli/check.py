"""``afire check``: can everything in a data list or folder be used?"""

from __future__ import annotations

import warnings


def check(path: str, *, base_dir: str | None = None, workers: int | None = None, quiet: bool = False) -> int:
    """Read every image of a data list, a folder or one file, and say what cannot be used and why.

    Of a data list its keys, labels, splits and duplicates are checked as well. Exit status 1: something was found.

    Example: afire check list.json

    Example: afire check radiographs

    Args:
        path: data list (.json), folder or image.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.
        workers: threads that read; the number of cores unless given.
        quiet: no progress bar.
    """
    from afire_monai.datalists.check import check_path
    from afire_monai.datalists.validate import validate_datalist

    # pydicom's remarks on odd headers quote their values, which can be a patient's
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    sound = True
    if path.lower().endswith(".json"):
        listed = validate_datalist(path, base_dir)
        print(listed.summary())
        sound = listed.ok
    report = check_path(path, base_dir, workers=workers, progress=not quiet)
    print(report.summary())
    if not (sound and report.ok):
        print("result:  not ready; see above")
        return 1
    print("result:  ready")
    if path.lower().endswith(".json"):
        print(
            "next:    python -m monai.bundle run "
            "--config_file \"['bundle/configs/pretrain.yaml','bundle/configs/method_afire.yaml']\" "
            f"--datalist {path} --output_dir runs/mine"
        )
    return 0
