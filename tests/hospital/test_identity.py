from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

import pytest

from afire_monai.core.errors import AfireError
from afire_monai.hospital.identity import IdentityKey


def test_hash_is_that_of_hmac_over_lengths_and_parts() -> None:
    key = bytes(range(32))
    expected = hmac.new(key, b"7:patient3:UKB4:4711", hashlib.sha256).hexdigest()[:20]
    assert IdentityKey(key).patient(" 4711 ", "UKB") == expected


def test_hash_depends_on_key_issuer_and_kind() -> None:
    one, other = IdentityKey(bytes(32)), IdentityKey(b"\1" * 32)
    hashes = [
        one.patient("1"),
        other.patient("1"),
        one.patient("1", "A"),
        one.image("1"),
        one.study("1"),
        one.site("1"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert one.patient("b", "a") != one.patient("", "ab")


def test_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    previous = os.umask(0)
    try:
        made = IdentityKey.make(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert IdentityKey.load(path).patient("x") == made.patient("x")
    assert IdentityKey.make(tmp_path / "other").patient("x") != made.patient("x")
    content = path.read_bytes()
    with pytest.raises(AfireError, match="made once"):
        IdentityKey.make(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    IdentityKey.make(tmp_path / "key")
    os.chmod(tmp_path / "key", mode)
    with pytest.raises(AfireError, match="chmod 600"):
        IdentityKey.load(tmp_path / "key")


def test_key_of_another_length_or_nowhere_is_refused_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    os.chmod(tmp_path / "key", 0o600)
    with pytest.raises(AfireError, match="5 bytes"):
        IdentityKey.load(tmp_path / "key")
    with pytest.raises(AfireError, match="cannot be read"):
        IdentityKey.load(tmp_path / "nowhere")
    secret = os.urandom(32)
    assert secret.hex() not in repr(IdentityKey(secret))
    assert repr(secret) not in repr(IdentityKey(secret))
