"""The data list file: JSON in the style of MONAI and the Medical Segmentation Decathlon.

``{"name": …, "labels": ["Normal", "Pneumonia"], "meta": {…}, "training": […], "validation": […], "test": […]}``, where
an item holds ``image`` and may hold ``label`` (one of 1 present, 0 absent, -1 uncertain, null not known for each of
``labels``), ``group`` (patient), ``mask``, ``boxes`` (``[x, y, width, height, name]`` in pixels from the top left),
``sex`` (F, M), ``age`` (years), ``view`` (PA, AP, …) and ``source``. Paths are absolute, or relative to the folder of
the file.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import marshal
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from afire_monai.core.errors import DataListError
from afire_monai.core.files import whole_file
from afire_monai.datalists.cells import means_normal
from afire_monai.datalists.patients import patient_of
from afire_monai.radiographs.decode import checked_options

SECTIONS = ("training", "validation", "test")
PATH_KEYS = ("image", "mask")
_REPEATED = ("view", "sex", "source")
DEFAULT_NORMAL = "Normal"

DataList = dict[str, Any]
StrPath = str | os.PathLike[str]


@overload
def load_datalist(path: StrPath, base_dir: StrPath | None = None, section: None = None) -> DataList: ...
@overload
def load_datalist(path: StrPath, base_dir: StrPath | None = None, *, section: str) -> list[dict[str, Any]]: ...
@overload
def load_datalist(path: StrPath, base_dir: StrPath | None, section: str) -> list[dict[str, Any]]: ...
def load_datalist(
    path: StrPath, base_dir: StrPath | None = None, section: str | None = None
) -> DataList | list[dict[str, Any]]:
    """Read a data list with all paths made absolute.

    Args:
        path: the JSON file.
        base_dir: folder that relative paths start from; None for the folder of the file.
        section: "training", "validation" or "test", to get the items of one section.

    Returns:
        The whole list; or with ``section`` its items in a form that any ``DataLoader`` can collate: each has the same
        keys, with the patient as ``group``, "" for a value that an item lacks (NaN for ``age``), ``label`` as floats
        with NaN for not known, and without ``boxes``, whose number differs.

    Raises:
        DataListError: if there is no such file or section, or the file is not JSON or not a data list.
    """
    datalist = read_raw(Path(path))
    base = Path(base_dir) if base_dir is not None else Path(path).absolute().parent
    resolved = resolve_paths(datalist, base, where=str(path), in_place=True)
    if section is None:
        return resolved
    try:
        return _alike(_section(resolved, section, path), resolved.get("labels", []))
    except DataListError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise DataListError(
            f"{path}: a label in {section} is neither a number nor null; `afire check` names the item. Correct it, or "
            "build the list again"
        ) from error


def _section(datalist: DataList, section: str, path: StrPath) -> list[dict[str, Any]]:
    if section not in datalist:
        present = ", ".join(s for s in SECTIONS if s in datalist) or "none"
        raise DataListError(f"{path}: no section {section!r}; it has {present}. Name one of these")
    return datalist[section]


def _alike(items: list[dict[str, Any]], labels: list[str]) -> list[dict[str, Any]]:
    keys = [key for key in dict.fromkeys(key for item in items for key in item) if key not in ("boxes", "group")]
    empty: dict[str, Any] = dict.fromkeys(keys, "") | {"age": math.nan, "label": [None] * len(labels)}

    def complete(item: dict[str, Any]) -> dict[str, Any]:
        known = {key: empty[key] if item.get(key) is None else item[key] for key in keys} | {"group": patient_of(item)}
        if "label" in known:
            known["label"] = [math.nan if value is None else value + 0.0 for value in known["label"]]
        return known

    return [complete(item) for item in items]


def save_datalist(datalist: DataList, path: StrPath) -> Path:
    """Write a data list in one piece: a reader sees the old file or the new one, never a part.

    Args:
        datalist: as `load_datalist` returns or the ``datalist_from_…`` functions build; relative paths are kept, and
            absolute ones are stored relative to the folder of the file, so that both can move together.
        path: file to write; its folder is made.

    Returns:
        The path. ``meta.sha256`` in the file is the `datalist_hash` of the written list.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = dict(datalist)
    here = path.absolute().parent
    for section in present_sections(datalist):
        written[section] = [
            {k: _relative(v, here) if k in PATH_KEYS and isinstance(v, str) else v for k, v in item.items()}
            for item in datalist[section]
        ]
    written["meta"] = {**datalist.get("meta", {}), "sha256": datalist_hash(written)}
    # file names that are not UTF-8 hold lone surrogates, which JSON escapes
    with (
        whole_file(path, shared=True, sync=True) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        json.dump(written, file, indent=1, ensure_ascii=False)
        file.write("\n")
    return path


def datalist_hash(datalist: DataList) -> str:
    """SHA-256 of sections and label names as canonical JSON (sorted keys, no blanks), as checkpoints record it."""
    content = {key: datalist[key] for key in ("labels", *SECTIONS) if key in datalist}
    digest = hashlib.sha256()
    for part in _canonical(content):
        digest.update(part.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _canonical(content: dict[str, Any]) -> Iterator[str]:
    """Yield canonical JSON of an object in parts: a million items as one text would take more memory than the items."""
    dump = functools.partial(json.dumps, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for place, key in enumerate(sorted(content)):
        value = content[key]
        yield f"{',' if place else '{'}{dump(key)}:"
        if not isinstance(value, list):
            yield dump(value)
            continue
        for start in range(0, len(value), 10_000):
            yield ("," if start else "[") + dump(value[start : start + 10_000])[1:-1]
        yield "]" if value else "[]"
    yield "}" if content else "{}"


def training_items(path: StrPath, section: str = "training", base_dir: StrPath | None = None) -> list[dict[str, Any]]:
    """Return the normal images of one section, for pre-training.

    A list that knows no labels is taken to hold normal images only, for nothing in it says otherwise.

    Args:
        path: the JSON file.
        section: "training", "validation" or "test".
        base_dir: as in `load_datalist`.

    Raises:
        DataListError: as `load_datalist`, or if no item is left.
    """
    datalist = load_datalist(path, base_dir)
    _section(datalist, section, path)
    if items := normal_of(datalist, section):
        return items
    if not datalist[section]:
        raise DataListError(f"{path}: section {section!r} is empty. Build the list with another share for it")
    raise DataListError(
        f"{path}: section {section!r} has no normal image: none of its {len(datalist[section])} has "
        f"{normal_label(datalist)!r} alone. The labels are {', '.join(datalist['labels'])}: build the list with "
        "--normal-label NAME, which means no finding"
    )


def normal_of(datalist: DataList, section: str) -> list[dict[str, Any]]:
    """Items of a section that are `is_normal`; all of them in a list that knows no labels."""
    items: list[dict[str, Any]] = datalist.get(section, [])
    if not datalist.get("labels"):
        return items
    normal = normal_label(datalist)
    return [item for item in items if is_normal(item, datalist["labels"], normal)]


def is_normal(item: Mapping[str, Any], labels: Sequence[str], normal: str) -> bool:
    """Whether an item is known to be without finding; ``normal`` is the list's `normal_label`.

    With a label for normal: it is 1 and no other label is 1. Without such a label: all labels are 0 (none unknown).
    An item without labels is not known to be normal.
    """
    values = item.get("label")
    if not isinstance(values, list) or not values or len(values) != len(labels):
        return False
    if normal in labels:
        place = labels.index(normal)
        return values[place] == 1 and 1 not in values[:place] and 1 not in values[place + 1 :]
    return values.count(0) == len(values)


def abnormality(item: Mapping[str, Any], labels: Sequence[str], normal: str) -> float:
    """Return 1 for an item with a finding, 0 for one that `is_normal`, and NaN for one of which neither is known."""
    values = item.get("label") or []
    if any(value == 1 for name, value in zip(labels, values, strict=False) if name != normal):
        return 1.0
    return 0.0 if is_normal(item, labels, normal) else float("nan")


def normal_label(datalist: DataList) -> str:
    """Return the label that means "no finding": ``meta.normal_label``, else the one named Normal or No Finding."""
    named = (datalist.get("meta") or {}).get("normal_label")
    return named or next((str(label) for label in datalist.get("labels") or [] if means_normal(label)), DEFAULT_NORMAL)


def reader_options(datalist: DataList) -> dict[str, Any]:
    """Return how the images of a list are to be read (``meta.reader``): arguments of `read_picture` by name.

    Raises DataListError for another name or value.
    """
    options = datalist.get("meta", {}).get("reader", {})
    return checked_options(options, "meta.reader")


def present_sections(datalist: DataList) -> list[str]:
    """Names of the sections that a list has, in the order training, validation, test."""
    return [section for section in SECTIONS if section in datalist]


def resolve_paths(datalist: DataList, base: Path, where: str = "data list", in_place: bool = False) -> DataList:
    """Copy of a list with absolute paths; an item that is a bare name (Decathlon's tests) becomes ``{"image": …}``.

    Args:
        datalist: as it stands in the file.
        base: folder that relative paths start from.
        where: its name in messages.
        in_place: the caller has no other use for the list, so its items are changed rather than copied.

    Raises:
        DataListError: if there is no section, an item has no image, or a value has another type; the message names the
            place.
    """
    sections = present_sections(datalist)
    for key, kind, expected in (("labels", list, "a list of names"), ("meta", dict, "an object")):
        value = datalist.get(key, kind())
        if not isinstance(value, kind) or not all(isinstance(name, str) for name in value):
            raise DataListError(f"{where}: {key!r} is {_seen(value)}; {expected} is expected, or no such key")
    if not sections:
        raise DataListError(
            f"{where}: none of {', '.join(SECTIONS)} is in it; keys are {', '.join(datalist) or 'none'}"
        )
    resolved = dict(datalist)
    folder = os.path.abspath(base)
    for section in sections:
        if not isinstance(datalist[section], list):
            raise DataListError(f"{where}: {section!r} is a {type(datalist[section]).__name__}; a list is expected")
        resolved[section] = list(_resolved(datalist[section], folder, f"{where}: {section}", in_place))
    return resolved


def read_raw(path: Path) -> DataList:
    """Content of a data list file as it stands, with its paths as they are.

    Raises DataListError if there is no such file, or it is not JSON or not an object.
    """
    try:
        with _no_collection():
            content = json.loads(path.read_bytes(), object_pairs_hook=_shared())  # UTF-8 or UTF-16, with a mark or not
    except OSError as error:
        raise DataListError(f"{path}: {error.strerror or 'not readable'}; a JSON data list is expected") from error
    except _KeyTwiceError as error:
        raise DataListError(
            f"{path}: the key {str(error)!r} appears twice in one object; keep the right one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataListError(f"{path}: not JSON ({error}). Build it again with `afire datalist`") from error
    if not isinstance(content, dict):
        raise DataListError(
            f"{path}: a {type(content).__name__} at the top; an object with {', '.join(SECTIONS)} is expected"
        )
    return content


class _KeyTwiceError(Exception):
    """An object of the file has two values of one key."""


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector of cycles from looking, again and again, through a million items that are only being made."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _shared() -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return a JSON hook that lets items share equal values: a list of a million items is mostly repetition."""
    labels: dict[bytes, list[Any]] = {}

    def share(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        item = dict(pairs)
        if len(item) < len(pairs):
            raise _KeyTwiceError(next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place])))
        label = item.get("label")
        if type(label) is list and len(labels) < 100_000:
            item["label"] = labels.setdefault(marshal.dumps(label), label)  # distinguishes 1 from 1.0 and from true
        if len(item) > 2:
            for key in _REPEATED:
                if type(value := item.get(key)) is str:
                    item[key] = sys.intern(value)
        return item

    return share


def _resolved(items: Sequence[Any], folder: str, where: str, in_place: bool) -> Iterator[dict[str, Any]]:
    prefix = folder if folder.endswith(os.sep) else folder + os.sep
    for place, item in enumerate(items):
        item = {"image": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not isinstance(item.get("image"), str) or not item["image"]:
            raise DataListError(f'{where}[{place}] has no image path; {{"image": "path", …}} is expected')
        if not in_place:
            item = dict(item)
        for key in PATH_KEYS:
            if key in item and (value := item[key]) != "":
                if not isinstance(value, str) or not _is_path(value):
                    raise DataListError(f"{where}[{place}].{key} is {_seen(value)}; a path is expected, or no such key")
                item[key] = _absolute(value, prefix)
        if type(group := item.get("group", "")) is not str and type(group) not in (int, float, type(None)):
            raise DataListError(f"{where}[{place}].group is {_seen(group)}; a text is expected, or no such key")
        yield item


def _is_path(text: str) -> bool:
    """Return whether the file system can have such a name: no NUL, and no half of a surrogate pair but its own."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _seen(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float | str)
    return json.dumps(value)[:60] if plain else f"a {type(value).__name__}"


def _absolute(path: str, prefix: str) -> str:
    """As ``os.path.abspath`` of the path in a folder that is absolute and ends with a separator."""
    plain = os.sep == "/" and path[0] not in "/." and path[-1:] != "/" and "//" not in path and "/." not in path
    if plain:
        return prefix + path
    return os.path.abspath(os.path.join(prefix, path))


def _relative(path: str, here: Path) -> str:
    if not os.path.isabs(path):
        return path
    try:
        return Path(os.path.relpath(path, here)).as_posix()
    except ValueError:  # another drive
        return path
