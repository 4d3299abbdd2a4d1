"""Damaged files of every kind end in a picture or a named reason, and the counts add up."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hospital_files import chest, radiograph, write
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.core.pool import UNEXPECTED
from afire_monai.datalists.file import load_datalist
from afire_monai.hospital.forget import forget
from afire_monai.hospital.ingest import ingest
from afire_monai.hospital.series_choice import DUPLICATE
from afire_monai.radiographs import dicom_open
from afire_monai.radiographs.decode import read_picture

DEFLATED = "1.2.840.10008.1.2.1.99"


def part10(body: bytes, syntax: str = DEFLATED) -> bytes:
    """A Part 10 file of a transfer syntax with a body that is given."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<2H2sH", 2, 0x10, b"UI", len(uid)) + uid
    length = struct.pack("<2H2sHI", 2, 0, b"UL", 4, len(meta))
    return b"\0" * 128 + b"DICM" + length + meta


def bomb(path: Path, size: int = 1_000_000_000) -> Path:
    """A file of a thousandth of the size that it inflates to."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    buffer = io.BytesIO()
    radiograph(1, file_meta=None).save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=False)
    head = buffer.getvalue()[132:] if buffer.getvalue()[128:132] == b"DICM" else buffer.getvalue()
    body = machine.compress(head)
    block = bytes(1 << 20)
    for _ in range(size >> 20):
        body += machine.compress(block)
    path.write_bytes(part10(b"") + body + machine.flush())
    return path


def test_deflated_file_is_read_as_the_plain_one(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", 1)
    content = plain.read_bytes()
    at = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    (tmp_path / "deflated").write_bytes(part10(b"") + machine.compress(content[at:]) + machine.flush())
    np.testing.assert_array_equal(read_picture(tmp_path / "deflated").pixels, read_picture(plain).pixels)


def test_deflate_bomb_is_refused_by_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_open, "MAX_INFLATED_BYTES", 20_000_000)
    path = bomb(tmp_path / "bomb", 30_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(RadiographError, match="inflates too far"):
        read_picture(path)


def test_file_of_more_than_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    with path.open("ab") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(RadiographError, match="file too large"):
        read_picture(path)


def test_decoder_that_panics_is_a_refusal(tmp_path: Path) -> None:
    pytest.importorskip("rle", reason="needs the decoders of the dicom extra")
    item = radiograph(1, chest(1, 48))
    item.compress(RLELossless)
    path = tmp_path / "rle"
    item.save_as(path, enforce_file_format=True)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    start, refused = content.find(b"\xfe\xff\x00\xe0", content.find(b"\xe0\x7f\x10\x00") + 20) + 72, 0
    for _ in range(100):
        for at in rng.integers(start, len(content), 20):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_picture(path)
        except RadiographError:
            refused += 1
    assert refused > 0


def sources(real_data: Path | None) -> list[bytes]:
    """Whole files to damage: uncompressed, RLE, JPEG 2000, deflated; and small real ones."""
    contents = []
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless):
        item = radiograph(1, chest(1, 48))
        item.SOPInstanceUID, item.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
        if syntax != ExplicitVRLittleEndian:
            item.compress(syntax, generate_instance_uid=False)
        buffer = io.BytesIO()
        item.save_as(buffer, enforce_file_format=True)
        contents.append(buffer.getvalue())
    if real_data is not None:
        small = [p for p in sorted((real_data / "dicom").rglob("*.dcm")) if p.stat().st_size < 150_000]
        contents = contents * 3 + [path.read_bytes() for path in small]
    return contents


def damaged(contents: list[bytes], count: int) -> Iterator[bytes]:
    """Files with bytes flipped, parts dropped or doubled, wrong lengths and sizes, or cut off."""
    rng = np.random.default_rng(0)
    tags = [struct.pack("<2H", *tag) for tag in ((0x28, 0x10), (0x28, 0x11), (0x28, 0x100), (0x28, 0x2), (0x28, 0x8))]
    for number in range(count):
        content = bytearray(contents[number % len(contents)])
        kind = number // len(contents) % 7
        if kind == 0:  # bytes flipped, most of them in the header
            for at in rng.integers(0, len(content), 6):
                content[int(at if rng.random() < 0.3 else 132 + at % 900) % len(content)] = rng.integers(256)
        elif kind == 1:  # cut off
            del content[int(len(content) * rng.random()) :]
        elif kind == 2:  # a part dropped
            at = int(rng.integers(132, max(133, min(len(content), 1500))))
            del content[at : at + int(rng.integers(1, 60))]
        elif kind == 3:  # huge rows, columns, or other numbers
            for tag in tags[: int(rng.integers(1, 6))]:
                at = content.find(tag)
                if at > 0:
                    content[at + 8 : at + 10] = struct.pack("<H", int(rng.choice([0, 1, 60000, 65535])))
        elif kind == 4:  # a wrong length
            at = int(rng.integers(132, max(133, min(len(content) - 4, 1500))))
            content[at : at + 4] = rng.bytes(4)
        elif kind == 5:  # a part doubled
            at = int(rng.integers(132, max(133, len(content) - 50)))
            content[at:at] = content[at : at + 50]
        else:  # pixels replaced by noise
            at = int(len(content) * 0.7)
            content[at:] = rng.bytes(len(content) - at)
        # no two are the same image, so that each is tried by itself
        own = f"1.2.826.0.1.1{number:012}.".encode()
        for uid in (b"1.2.826.0.1.3680043.8.498.1", b"1.2.826.0.1.3680043.8.498.2"):
            content = bytearray(bytes(content).replace(uid, own + uid[-1:]))
        yield bytes(content)


def check(folder: Path, out: Path, contents: list[bytes], count: int) -> None:
    folder.mkdir()
    write(folder / "whole", 99)
    bomb(folder / "bomb", 600_000_000)
    for number, content in enumerate(damaged(contents, count)):
        (folder / f"{number:05}").write_bytes(content)
    done = ingest(folder, out, workers=2, seconds_per_file=30)
    assert done.seen == count + 2
    assert done.kept + sum(done.left_out.values()) == done.seen
    assert done.left_out["inflates too far"] == 1
    assert done.left_out.get(UNEXPECTED, 0) == 0, (out / "private" / "left_out.csv").read_text()
    assert done.kept - 1 + done.left_out.get(DUPLICATE, 0) > count / 20  # damage that does not matter
    assert len(list((out / "images").iterdir())) == done.kept
    rows = (out / "left_out.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(done.left_out.values())
    assert all(row.partition(",")[2] in done.left_out for row in rows[1:])


def corpus(request: pytest.FixtureRequest) -> Path | None:
    try:
        return request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        return None


def test_three_hundred_damaged_files_are_kept_or_left_out(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    check(tmp_path / "in", tmp_path / "out", sources(corpus(request)), 320)


@pytest.mark.slow
def test_two_thousand_damaged_files_are_kept_or_left_out(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    check(tmp_path / "in", tmp_path / "out", sources(corpus(request)), 2000)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE facts SET value='x' WHERE name='run'",
        "UPDATE files SET header='[' WHERE number=1",
        "UPDATE files SET header='[1]' WHERE number=1",
        """UPDATE files SET header='{"nothing": 1}' WHERE number=1""",
        """UPDATE files SET header='{"body_part": 3}' WHERE number=1""",
        """UPDATE files SET header='{"patient_id": 7654321}' WHERE number=1""",
        """UPDATE files SET header='{"series_texts": [3]}' WHERE number=1""",
        "UPDATE files SET result='x' WHERE number=1",
        """UPDATE files SET result='{"size": 3}' WHERE number=1""",
        "UPDATE files SET result=json_replace(result, '$.histogram', json('[null, \"a\"]')) WHERE number=1",
        """UPDATE files SET result='{"kind": 3}' WHERE number=1""",
        "UPDATE files SET result=json_remove(result, '$.histogram[0]') WHERE number=1",
        "UPDATE files SET header=CAST(x'ff00' AS TEXT) WHERE number=1",
    ],
)
def test_damaged_state_is_told_with_the_way_out(tmp_path: Path, change: str) -> None:
    for seed in range(3):
        write(tmp_path / "in" / f"{seed}", seed)
    ingest(tmp_path / "in", tmp_path / "out", workers=0)
    state = tmp_path / "out" / "private" / "state.sqlite"
    with contextlib.closing(sqlite3.connect(state)) as base, base:
        base.execute(change)
    with pytest.raises(AfireError, match=r"state.sqlite: damaged .*Remove it: the files are then read again") as error:
        ingest(tmp_path / "in", tmp_path / "out", workers=0)
    assert "7654321" not in str(error.value)
    before = load_datalist(tmp_path / "out" / "datalist.json")
    state.unlink()
    assert ingest(tmp_path / "in", tmp_path / "out", workers=0).kept == 3
    assert load_datalist(tmp_path / "out" / "datalist.json") == before


def test_state_with_a_damaged_page_is_told_in_words(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "in" / f"{seed}", seed)
    ingest(tmp_path / "in", tmp_path / "out", workers=0)
    state = tmp_path / "out" / "private" / "state.sqlite"
    data, messages = state.read_bytes(), []
    for page in range(1, len(data) // 4096):
        state.write_bytes(data[: page * 4096] + b"\xff" * 4096 + data[(page + 1) * 4096 :])
        try:
            ingest(tmp_path / "in", tmp_path / "out", workers=0)
        except AfireError as error:
            messages.append(str(error))
    assert messages
    assert [message for message in messages if "state.sqlite: damaged" not in message] == []


def test_state_with_a_damaged_page_is_told_in_words_when_a_patient_is_erased(tmp_path: Path) -> None:
    for seed in range(60):  # so many that the numbers of runs and the headers are on different pages
        write(tmp_path / "in" / f"{seed}", seed)
    ingest(tmp_path / "in", tmp_path / "out", workers=0)
    state = tmp_path / "out" / "private" / "state.sqlite"
    data = state.read_bytes()
    for page in range(1, len(data) // 4096):
        state.write_bytes(data[: page * 4096] + b"\xa5" * 4096 + data[(page + 1) * 4096 :])
        with pytest.raises(AfireError, match=r"state\.sqlite: damaged|no file of this patient"):
            forget("nobody", tmp_path / "out")
