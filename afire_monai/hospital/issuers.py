"""Decide whether the issuer of a PatientID distinguishes patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from afire_monai.core.errors import AfireError

ONE, SEPARATE = "one", "separate"
ISSUERS = (ONE, SEPARATE)


def plain_issuer(issuer: str) -> str:
    """Return an issuer in capitals with single blanks, so that spellings of one issuer are the same."""
    return " ".join(issuer.upper().split())


class Issuers:
    """Which issuer counts for each PatientID of an archive.

    ``one``: no issuer counts; a PatientID is one patient, so no patient can be in two sections. ``separate``: the same
    PatientID of two issuers is two patients; case and blanks do not count, and an image without issuer belongs to the
    only issuer of its PatientID, if there is one. Raises AfireError for another rule.
    """

    def __init__(self, rule: str = ONE) -> None:
        if rule not in ISSUERS:
            raise AfireError(f"issuers is {rule!r}; {' or '.join(ISSUERS)} is expected")
        self.rule = rule
        self._spellings: dict[str, set[str]] = defaultdict(set)

    def add(self, patient_id: str, issuer: str) -> None:
        """Note the issuer of one image; call it for all images before :meth:`of`."""
        if patient_id.strip():
            self._spellings[patient_id.strip()].add(issuer)

    def of(self, patient_id: str, issuer: str) -> str:
        """Return the issuer that counts for an image; "" for none."""
        if self.rule == ONE:
            return ""
        known = self._known(patient_id.strip())
        return plain_issuer(issuer) or (known.pop() if len(known) == 1 else "")

    def remarks(self) -> Iterator[str]:
        """Yield remarks for the user, with counts."""
        several = [patient for patient in self._spellings if len(self._known(patient)) > 1]
        spelled = sum(len(found) > 1 for found in self._spellings.values()) - len(several)
        if spelled:
            yield (
                f"{spelled} PatientIDs occur with and without their issuer, or with its name in several spellings; "
                "each counts as one patient"
            )
        if several and self.rule == ONE:
            yield (
                f"{len(several)} PatientIDs occur with different issuers; each counts as one patient. If the issuers "
                "number their patients independently, use --issuers separate"
            )
        unclear = sum("" in map(plain_issuer, self._spellings[patient]) for patient in several)
        if several and self.rule == SEPARATE:
            yield f"{len(several)} PatientIDs occur with different issuers; each issuer's is a patient of its own"
            if unclear:
                yield (
                    f"{unclear} of them also occur without issuer: whose these images are is not known, and the same "
                    "person may be in two sections"
                )

    def _known(self, patient_id: str) -> set[str]:
        return {plain_issuer(text) for text in self._spellings.get(patient_id, ())} - {""}
