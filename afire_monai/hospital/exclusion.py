"""Images that a person has excluded after looking at them."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path, PurePath

from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_rows
from afire_monai.datalists.csv_table import DELIMITERS
from afire_monai.hospital.identity import HASH_CHARACTERS

EXCLUDED_LIST = "excluded.csv"
COLUMN = "image"
_HASH = re.compile(rf"[0-9a-f]{{{HASH_CHARACTERS}}}")
_MOST_NAMED = 5


def read_exclusions(path: Path) -> dict[str, int]:
    """Read which images to leave out; return hash and number of the line.

    Args:
        path: text file with a hash (column ``image`` of private/index.csv) or the name of a picture on each line, or a
            CSV with these in a column ``image``. Empty lines do not count.

    Raises:
        AfireError: if it cannot be read, or a line holds something else. The message does not quote the line, as it
            could name a patient.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = max(DELIMITERS, key=(lines or [""])[0].count)
        rows = [(n, row) for n, row in enumerate(csv.reader(lines, delimiter=delimiter), 1) if any(map(str.strip, row))]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise AfireError(
            f"--exclude {path}: {reason}; a text file with a hash of an image a line is expected"
        ) from error
    place = 0
    if rows and COLUMN in (head := [cell.strip() for cell in rows[0][1]]):
        place, rows = head.index(COLUMN), rows[1:]
    names = {number: PurePath(row[place].strip()).name if place < len(row) else "" for number, row in rows}
    hashes = {number: name.removesuffix(".png") for number, name in names.items()}
    wrong = [number for number, name in hashes.items() if not _HASH.fullmatch(name)]
    if wrong:
        raise AfireError(
            f"--exclude {path}: {_lines(wrong)}: no hash or name of a picture, such as those in the column image of "
            "private/index.csv or on private/contact_sheet.html"
        )
    return {name: number for number, name in hashes.items()}


class Excluded:
    """Hashes of the images of a folder that were excluded, kept in its private folder so that they stay excluded.

    Args:
        private: the private folder of an ingest.

    Raises:
        AfireError: if the list is damaged.
    """

    def __init__(self, private: Path) -> None:
        self.path = private / EXCLUDED_LIST
        self.images: set[str] = set(read_exclusions(self.path)) if self.path.exists() else set()

    def add(self, wanted: dict[str, int], known: Collection[str], source: Path) -> None:
        """Exclude further images; AfireError if one is not known, and none is excluded then."""
        unknown = {image: line for image, line in wanted.items() if image not in known and image not in self.images}
        if unknown:
            shown = ", ".join(list(unknown)[:_MOST_NAMED]) + (", …" if len(unknown) > _MOST_NAMED else "")
            raise AfireError(
                f"--exclude {source}: {_lines(unknown.values())}: no image of this folder ({shown}). Hashes differ "
                "from key to key: take them from this folder's private/index.csv"
            )
        self.keep(self.images | set(wanted))

    def keep(self, images: set[str]) -> None:
        """Replace the list (mode 0600)."""
        if images != self.images:
            self.images = images
            write_rows(self.path, [(COLUMN,), *((image,) for image in sorted(images))], private=True)


def _lines(numbers: Collection[int]) -> str:
    shown, more = ", ".join(map(str, list(numbers)[:_MOST_NAMED])), len(numbers) - _MOST_NAMED
    return f"line{'s' * (len(numbers) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")
