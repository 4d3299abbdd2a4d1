from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

import pytest

from afire_monai.core import files
from afire_monai.core.errors import AfireError
from afire_monai.hospital import identity
from afire_monai.hospital.identity import IdentityKey, make_private_folder


def test_hash_is_that_of_hmac_over_lengths_and_parts() -> None:
    key = bytes(range(32))
    expected = hmac.new(key, b"7:patient3:UKB4:4711", hashlib.sha256).hexdigest()[:20]
    assert IdentityKey(key).patient(" 4711 ", "UKB") == expected


def test_each_kind_of_hash_is_that_of_its_name_and_text_without_blanks_around_it() -> None:
    key = IdentityKey(bytes(range(32)))

    def expected(text: bytes) -> str:
        return hmac.new(bytes(range(32)), text, hashlib.sha256).hexdigest()[:20]

    assert key.fingerprint == expected(b"11:fingerprint0:")
    assert repr(key) == f"IdentityKey({key.fingerprint})"
    assert key.patient("4711", " UKB ") == key.patient("4711", "UKB")
    assert key.patient("4711") == expected(b"7:patient0:4:4711")
    assert key.study(" 1.2 ") == expected(b"5:study3:1.2")
    assert key.image(" 1.2 ") == expected(b"5:image3:1.2")
    assert key.site(" Ward a ") == expected(b"4:site6:WARD A")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(AfireError, match=f"32 bytes, this has {length}"):
        IdentityKey(bytes(length))


@pytest.mark.parametrize("there", [None, 0o755, 0o500])
def test_private_folder_is_its_owners_only(tmp_path: Path, there: int | None) -> None:
    out = tmp_path / "new" / "out"
    if there:
        (out / "private").mkdir(parents=True)
        (out / "private").chmod(there)
    assert make_private_folder(out) == out / "private"
    assert stat.S_IMODE((out / "private").stat().st_mode) == 0o700


def test_private_folder_is_closed_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0)
    monkeypatch.setattr(identity.os, "chmod", lambda *_: None)
    assert stat.S_IMODE(make_private_folder(tmp_path / "out").stat().st_mode) == 0o700


def test_private_folder_that_is_a_link_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "private").symlink_to("elsewhere")
    with pytest.raises(AfireError, match="is a link"):
        make_private_folder(tmp_path)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(AfireError, match="Not a directory; give a folder"):
        make_private_folder(tmp_path / "file" / "out")


def test_key_is_on_the_disk_before_it_takes_its_name_under_a_name_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.append([path.name for path in tmp_path.iterdir()]))
    IdentityKey.make(tmp_path / "key")
    assert seen == [[f".key.{os.getpid()}.part"]]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_key_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AfireError, match="cannot be written: No such file"):
        IdentityKey.make(tmp_path / "nowhere" / "key")


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
    with pytest.raises(AfireError, match="created only once"):
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
