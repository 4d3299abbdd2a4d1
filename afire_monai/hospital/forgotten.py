"""Keyed hashes of erased patients, so that they stay erased and the list itself identifies nobody."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_rows
from afire_monai.hospital.identity import IdentityKey
from afire_monai.hospital.issuers import SEPARATE, plain_issuer
from afire_monai.radiographs.header import Header

FORGOTTEN = "forgotten"
FORGOTTEN_LIST = "forgotten.csv"
_COLUMNS = ("hash", "datalist_sha256", "section")


@dataclass
class Forgotten:
    """Keyed hashes of erased patients and of table values that name them; can be handed to other processes."""

    identity: IdentityKey  #: key of the hashes
    rule: str  #: rule by which issuers count, see `Issuers`
    hashes: set[str] = field(default_factory=set)  #: hashes of patients, and of their values in tables of labels
    #: data lists that held (``section``) or may have held ("") a patient: one of the patient's `names`, SHA-256 of the
    #: list, section
    lists: list[tuple[str, str, str]] = field(default_factory=list)

    @classmethod
    def load(cls, private: Path, identity: IdentityKey, rule: str) -> Forgotten:
        """Read the list of a private folder, empty where there is none; AfireError if it cannot be read."""
        path = private / FORGOTTEN_LIST
        if not path.exists():
            return cls(identity, rule)
        try:
            with path.open(encoding="ascii", newline="") as file:
                rows = [tuple(row[name] for name in _COLUMNS) for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise AfireError(f"{path}: cannot be read ({type(error).__name__}); take it from a backup") from error
        lists = [(first, sha256, section) for first, sha256, section in rows if sha256]
        return cls(identity, rule, {row[0] for row in rows}, lists)

    def save(self, private: Path) -> None:
        """Write the list (mode 0600)."""
        listed = {first for first, _, _ in self.lists}
        rows = [*self.lists, *((one, "", "") for one in sorted(self.hashes - listed))]
        write_rows(private / FORGOTTEN_LIST, [_COLUMNS, *rows], private=True)

    def holds(self, header: Header, path: str) -> bool:
        """Whether the file with this header is of a forgotten patient."""
        return bool(self.hashes) and self.patient(header, path) in self.hashes

    def holds_value(self, value: str) -> bool:
        """Whether a cell of a table of labels, as a patient's number, is a forgotten patient's."""
        return bool(self.hashes) and self.value(value) in self.hashes

    def patient(self, header: Header, path: str) -> str:
        """Hash of whose file it is; files without PatientID are known by study, without study each by itself."""
        if header.patient_id:
            issuer = plain_issuer(header.issuer) if self.rule == SEPARATE else ""
            return self.identity.forgotten("patient", issuer, header.patient_id)
        if header.study_uid:
            return self.identity.forgotten("study", header.study_uid)
        return self.identity.forgotten("image", header.sop_uid or f"file {path}")

    def group(self, group: str) -> str:
        """Hash of a patient's hash."""
        return self.identity.forgotten("group", group)

    def value(self, value: str) -> str:
        """Hash of a value that joins labels to images."""
        return self.identity.forgotten("value", value)

    def names(self, groups: Iterable[str], patient: str | None) -> set[str]:
        """Hashes under which patients are noted: of their hashes, and of a PatientID."""
        return {self.group(group) for group in groups} | ({self.value(patient)} if patient else set())

    def lists_of(self, names: Collection[str]) -> dict[str, str]:
        """Return SHA-256 of the data lists that held or may have held patients, with the section ("" if not known)."""
        lists = sorted(self.lists, key=lambda one: one[2])  # what is known comes after what may be
        return {sha256: section for name, sha256, section in lists if name in names}
