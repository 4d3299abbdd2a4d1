"""``afire cache``: decode the pictures of a data list before a training asks for them."""

from __future__ import annotations


def cache(
    datalist: str,
    *,
    size: int,
    width: int | None = None,
    dtype: str = "uint8",
    cache_dir: str = "",
    dataset_dir: str = "",
    workers: int | None = None,
) -> int:
    """Decode the normal training images of a data list into a cache on disk, for trainings with --cache disk.

    A training does the same at its start; this command needs no GPU. Images that are already in the cache are kept, so
    you can stop the command and run it again.

    Example: afire cache list.json --size 224

    Args:
        datalist: the JSON data list.
        size: height in pixels, and width unless given: image_size; for AFiRe's grid-shifted form plus shift times
            patch_size (224 + 2 x 16 = 256).
        width: width in pixels, if it differs.
        dtype: uint8, or uint16 for more than 256 grey levels.
        cache_dir: folder of the cache, as in the training; LIST.cache beside the list unless given.
        dataset_dir: base of relative image paths; empty for the list's own folder.
        workers: number of processes that decode; one for each core unless given.
    """
    from pathlib import Path

    from afire_monai.core.errors import AfireError
    from afire_monai.loading.cache import DiskCache, left_out_in_words
    from afire_monai.loading.cache_build import build_cache, cache_of
    from afire_monai.training import startup

    if workers is not None and workers < 0:
        raise AfireError(f"--workers is {workers}; at least 0 is expected")
    if datalist == "phantom":
        raise AfireError("phantom is a data list only for training; give the path of a data list")
    path = startup.find_datalist(datalist, dataset_dir, ".")
    paths = startup.normal_items(path, "training", dataset_dir)
    options = startup.reading((size, size), datalist=path).options  # type: ignore[attr-defined]
    shape = (size, size if width is None else width)
    folder = Path(cache_dir) if cache_dir else path.with_suffix(".cache")
    folder = cache_of(folder, shape, dtype)
    read = build_cache(paths, folder, shape, dtype, options, workers=workers)
    stored = DiskCache(folder, paths)
    print(f"{len(stored)} of {len(paths)} images are in {folder}; {read} files were read")
    if stored.reasons:
        print(f"left out: {left_out_in_words(stored.reasons)}")
    return 1 if stored.reasons else 0
