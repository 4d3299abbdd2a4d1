"""Pseudonyms: keyed hashes of patients, images and sites."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.core.files import refuse_wide, whole_file

KEY_BYTES = 32
KEY = "key"
HASH_CHARACTERS = 20

PRIVATE = "private"
INDEX, LEFT_OUT, UNMATCHED = "index.csv", "left_out.csv", "unmatched_labels.csv"
RETRIEVED, NOT_RETRIEVED = "dicom", "not_retrieved.csv"
UNPACKED = "unpacked"
"""Names in the private folder, such as those of the retrieved files and of the table of failed retrievals."""


def make_private_folder(out: Path) -> Path:
    """Make ``out`` and ``out/private`` (mode 0700); a wider mode that is there already is narrowed.

    Raises AfireError if it cannot be made, or is a link to somewhere else.
    """
    folder = out / PRIVATE
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise AfireError(f"{folder} is a link; it must be a folder of its own. Remove it, or give another --out")
        os.chmod(folder, 0o700)
    except OSError as error:
        raise AfireError(f"{out}: {error.strerror}; give a folder that can be written with --out") from error
    return folder


class IdentityKey:
    """HMAC-SHA256 under a key that stays with the hospital, shortened to 80 bits.

    The same patient has the same hash under the same key, in every folder made with it. Without the key no hash can be
    computed, so a list of all patient numbers does not help anybody to find a patient. Raises AfireError if the key has
    another length.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise AfireError(f"an identity key is {KEY_BYTES} bytes, this has {len(key)}")
        self._key = key

    def __repr__(self) -> str:
        return f"IdentityKey({self.fingerprint})"

    @classmethod
    def make(cls, path: Path) -> IdentityKey:
        """Make a random key and write it (mode 0600); a key that is there is never overwritten.

        Raises AfireError if there is something at the path, or it cannot be written.
        """
        key = secrets.token_bytes(KEY_BYTES)
        try:
            with whole_file(path, private=True, shared=True, sync=True, new=True) as part:
                part.write_bytes(key)
        except FileExistsError as error:
            raise AfireError(f"{path}: the file already exists; a key is created only once. Load it instead") from error
        except OSError as error:
            raise AfireError(f"{path}: the key cannot be written: {error.strerror}") from error
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> IdentityKey:
        """Read a key that `make` wrote; AfireError if it is not there, others may read it, or it is not a key."""
        try:
            refuse_wide(path)
            key = path.read_bytes()
        except OSError as error:
            raise AfireError(
                f"{path}: the key cannot be read: {error.strerror}. Give the private/{KEY} of an earlier `afire "
                "ingest`, or omit --key to create a new one"
            ) from error
        if len(key) != KEY_BYTES:
            raise AfireError(f"{path}: {len(key)} bytes; an identity key has {KEY_BYTES}. Put the right file there")
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without giving them away."""
        return self._hash("fingerprint", "")

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """Hash of a patient: of who issued the PatientID, and the PatientID. Blanks around either do not count."""
        return self._hash("patient", issuer.strip(), patient_id.strip())

    def study(self, study_uid: str) -> str:
        """Hash that stands for the patient of a study whose files name none."""
        return self._hash("study", study_uid.strip())

    def image(self, sop_instance_uid: str) -> str:
        """Hash of an image: of its SOPInstanceUID, or of a substitute for files without one."""
        return self._hash("image", sop_instance_uid.strip())

    def forgotten(self, *parts: str) -> str:
        """Hash under which something that was erased is known again; no hash of a patient or image is like it."""
        return self._hash("forgotten", *(part.strip() for part in parts))

    def site(self, name: str) -> str:
        """Hash of the institution or station that made an image."""
        return self._hash("site", name.strip().upper())

    def _hash(self, *parts: str) -> str:
        # the lengths keep ("ab", "c") and ("a", "bc") apart
        text = "".join(f"{len(part)}:{part}" for part in parts)
        content = text.encode("utf-8", errors="surrogateescape")
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()[:HASH_CHARACTERS]
