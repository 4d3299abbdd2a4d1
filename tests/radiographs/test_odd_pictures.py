"""Pictures that are sound but unusual, and bombs: read as they are meant, or refused early."""

from __future__ import annotations

import gzip
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom import DataElement, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    generate_uid,
)

from afire_monai.core.errors import RadiographError
from afire_monai.datalists.check import check_files
from afire_monai.radiographs.decode import list_images, picture_size, read_picture
from afire_monai.radiographs.dicom import codestream_size
from afire_monai.radiographs.masks import read_mask

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
RAMP = np.arange(40, dtype=np.uint16).reshape(5, 8) * 100


def dicom(path: Path, values: np.ndarray = RAMP, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "CR", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = values.astype("<u2").tobytes()
    for key, value in elements.items():
        setattr(dataset, key, value)
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def png(path: Path, values: np.ndarray, colour: int, depth: int = 16, extra: bytes = b"") -> Path:
    """A PNG written by hand, as no library writes 16-bit colour; ``extra`` are chunks before the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = values.astype(">u2" if depth == 16 else "u1").reshape(len(values), -1)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


# ---- DICOM


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_stored_higher_are_brought_down(tmp_path: Path, signed: bool) -> None:
    values = RAMP.astype(np.int32) - (1000 if signed else 0)
    plain = dicom(tmp_path / "a.dcm", (values & 0xFFF).astype(np.uint16), PixelRepresentation=int(signed))
    high = dicom(tmp_path / "b.dcm", ((values << 4) & 0xFFFF).astype(np.uint16) | 7, HighBit=15,
                 PixelRepresentation=int(signed))  # fmt: skip
    np.testing.assert_array_equal(read_picture(plain).pixels, read_picture(high).pixels)


@pytest.mark.parametrize(
    ("elements", "odd"),
    [
        ({"VOILUTFunction": "CUBIC", "WindowCenter": 2000, "WindowWidth": 4000}, "VOILUTFunction"),
        ({"VOILUTSequence": Sequence([Dataset()])}, "VOILUTSequence"),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "ModalityLUTSequence"),
        ({"WindowCenter": 100, "WindowWidth": 0}, "WindowWidth"),
    ],
)
def test_optional_element_that_makes_no_sense_counts_as_absent(
    tmp_path: Path, elements: dict[str, Any], odd: str
) -> None:
    plain = {k: v for k, v in elements.items() if k != odd and odd == "VOILUTFunction"}
    expected = read_picture(dicom(tmp_path / "a.dcm", **plain))
    picture = read_picture(dicom(tmp_path / "b.dcm", **elements))
    np.testing.assert_array_equal(picture.pixels, expected.pixels)
    assert picture.odd == (odd,)
    assert f"count as absent: {odd} 1" in check_files([str(tmp_path / "b.dcm")]).summary()


def test_doubled_function_and_padding_of_two_values(tmp_path: Path) -> None:
    one = dicom(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    two = dicom(tmp_path / "b.dcm", WindowCenter=2000, WindowWidth=1000, VOILUTFunction=["SIGMOID", "SIGMOID"],
                PixelPaddingValue=MultiValue(int, [0, 4095]))  # fmt: skip
    np.testing.assert_array_equal(read_picture(one).pixels, read_picture(two).pixels)


@pytest.mark.parametrize(("file", "odd"), [("05_wc_comma", "WindowCenter"), ("12_pad_two", "PixelPaddingValue"),
                                           ("01_highbit15", "")])  # fmt: skip
def test_shared_dicom_files_are_read(file: str, odd: str) -> None:
    path = CASES / "dicom" / f"{file}.dcm"
    if not path.is_file():
        pytest.skip("no shared cases")
    picture = read_picture(path)
    assert picture.odd[:1] == ((odd,) if odd else ())


def j2k_head(rows: int, columns: int) -> bytes:
    size = struct.pack(">HHIIIIIIII", 41, 0, columns, rows, 0, 0, columns, rows, 0, 0)
    return b"\xff\x4f\xff\x51" + size + struct.pack(">HBBB", 1, 11, 1, 1) + b"\xff\xd9"


def jpeg_head(rows: int, columns: int) -> bytes:
    return (
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x0b\x08"
        + struct.pack(">HH", rows, columns)
        + b"\x01\x01\x11\x00\xff\xd9"
    )


def test_size_in_a_codestream_is_found(tmp_path: Path) -> None:
    assert codestream_size(j2k_head(60_000, 50_000)) == (60_000, 50_000)
    assert codestream_size(b"box" * 9 + j2k_head(3, 4)) == (3, 4)
    assert codestream_size(jpeg_head(7, 9)) == (7, 9)
    assert codestream_size(b"") is codestream_size(b"\xff\xd8\xff") is codestream_size(j2k_head(3, 4)[:20]) is None


@pytest.mark.parametrize(("syntax", "head"), [(JPEG2000, j2k_head), (JPEGBaseline8Bit, jpeg_head)])
def test_codestream_larger_than_the_header_says_is_refused_before_decoding(
    tmp_path: Path, syntax: str, head: Any
) -> None:
    path = dicom(tmp_path / "a.dcm", syntax=syntax, PixelData=encapsulate([head(60_000, 60_000) + b"\0" * 1000]))
    with pytest.raises(RadiographError, match="the compressed pixels are 60000 × 60000, but the header says 5 × 8"):
        read_picture(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = check_files([str(path)])
    assert [refused.kind for refused in report.refused] == ["pixels do not decode"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


# ---- PNG


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_each_channel_are_kept(tmp_path: Path, colour: int, channels: int) -> None:
    grey = np.random.default_rng(0).integers(0, 4096, (6, 5)).astype(np.uint16)
    values = np.stack([grey] * channels, -1)
    if colour in (4, 6):
        values[..., -1] = 65535
        values[0, 0, -1] = 0
    picture = read_picture(png(tmp_path / "a.png", values, colour), png16_max=4095)
    expected = grey.astype(np.float32) / np.float32(4095)
    if colour in (4, 6):
        expected[0, 0] = 0
    np.testing.assert_array_equal(picture.pixels, expected)
    assert (picture.bits, picture.intensity) == (16, "/4095")


def test_deep_colour_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (6, 5, 3))
    with pytest.raises(RadiographError, match="colour image"):
        read_picture(png(tmp_path / "a.png", values, 2))


def test_transparent_grey_is_black(tmp_path: Path) -> None:
    grey = np.array([[0, 17, 200], [17, 255, 3]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=17)
    expected = np.where(grey == 17, 0, grey).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, expected)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png", transparency=17 * 257)
    np.testing.assert_allclose(read_picture(tmp_path / "b.png").pixels, expected, atol=1e-7)


def test_comment_with_a_bad_checksum_costs_no_picture(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "made up")
    grey = np.random.default_rng(0).integers(0, 255, (6, 5), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png", pnginfo=info)
    damaged = (tmp_path / "a.png").read_bytes().replace(b"made up", b"made uq")
    (tmp_path / "a.png").write_bytes(damaged)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, grey / np.float32(255))
    (tmp_path / "a.png").write_bytes(damaged.replace(b"IDAT", b"IDAU", 1))
    with pytest.raises(RadiographError):
        read_picture(tmp_path / "a.png")


def test_shared_pictures_are_read(tmp_path: Path) -> None:
    if not (CASES / "png").is_dir():
        pytest.skip("no shared cases")
    assert read_picture(CASES / "png" / "04_rgb16_12bit.png", png16_max=4095).pixels.max() > 0.5
    picture = Image.open(CASES / "png" / "08_g8_trns.png")
    clear = np.asarray(picture) == picture.info["transparency"]
    assert clear.any()
    assert (read_picture(CASES / "png" / "08_g8_trns.png").pixels[clear] == 0).all()
    assert check_files([str(CASES / "png" / "02_g12in16.png")]).png16_max == 4095


def test_formats_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.tif", "b.TIFF", "c.bmp", "d.webp"):
        (tmp_path / name).write_bytes(b"x")
    assert list_images(tmp_path) == []
    assert "not read: 1 .bmp, 1 .tif, 1 .tiff, 1 .webp" in caplog.text


# ---- NIfTI


def test_nifti_without_codes_is_upright_as_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (5, 8), dtype=np.uint8)
    image = nibabel.Nifti1Image(values[..., None], None)
    image.header.set_qform(None, 0)
    image.header.set_sform(None, 0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_picture(tmp_path / "a.nii.gz").pixels, values.T / 255, atol=1e-7)
    plain = tmp_path / "packed.nii"
    plain.write_bytes((tmp_path / "a.nii.gz").read_bytes())  # gzip is told by content
    np.testing.assert_allclose(read_picture(plain).pixels, values.T / 255, atol=1e-7)
    (tmp_path / "unpacked.nii.gz").write_bytes(gzip.decompress(plain.read_bytes()))
    np.testing.assert_allclose(read_picture(tmp_path / "unpacked.nii.gz").pixels, values.T / 255, atol=1e-7)


def test_shared_nifti_is_upright() -> None:
    path = CASES / "nifti" / "none_affine.nii.gz"
    if not path.is_file():
        pytest.skip("no shared cases")
    stored = np.asarray(nibabel.load(path).dataobj, dtype=np.float64).squeeze()
    assert np.corrcoef(read_picture(path).pixels.ravel(), stored.T.ravel())[0, 1] > 0.999


def test_sizes_come_from_headers(tmp_path: Path) -> None:
    assert picture_size(dicom(tmp_path / "a.dcm")) == (5, 8)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == (3, 4)


def test_damaged_files_end_in_a_picture_or_a_named_error(tmp_path: Path) -> None:
    """A small share of what ``benchmarks/damaged.py`` does with thousands."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "damaged.py"
    done = subprocess.run([sys.executable, script, "--files", "12"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "228 files, 0 raw" in done.stdout


def test_picture_that_asks_for_all_memory_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a PNG may say that it is 2 GB long."""
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.png")

    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(RadiographError, match=r"a.png: broken or truncated"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(RadiographError, match=r"a.png: mask not readable"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [b"U3", b"US"])
def test_sizes_that_are_damaged_elements_are_not_known(tmp_path, kind):
    path = dicom(tmp_path / "a.dcm")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x28\x00\x11\x00US")
    data[at + 4 : at + 10] = kind + b"\x01\x00" + data[at + 8 : at + 9]  # of no kind that is known, or one byte long
    path.write_bytes(data)
    assert picture_size(path) == (5, 0)


def test_a_modality_that_is_a_sequence_is_a_refusal(tmp_path):
    item = Dataset()
    item.add_new(0x00101010, "LO", "any")
    path = dicom(tmp_path / "a.dcm", Modality="CR")
    dataset = dcmread(path)
    del dataset.Modality
    dataset.add(DataElement(0x00080060, "SQ", [item]))
    dataset.save_as(path, enforce_file_format=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x10\x00\x10\x10LO")
    data[at + 4 : at + 6] = b"U3"  # a kind that is unknown, which shows when it is put into words
    path.write_bytes(data)
    with pytest.raises(RadiographError, match="not a readable DICOM file"):
        read_picture(path, modalities=None)


def test_a_look_up_table_that_is_no_sequence_counts_as_absent(tmp_path):
    path = dicom(tmp_path / "a.dcm")
    dataset = dcmread(path)
    expected = read_picture(path, modalities=None)
    dataset.add(DataElement(0x00283010, "OB", b"1234"))
    dataset.save_as(path, enforce_file_format=True)
    found = read_picture(path, modalities=None)
    assert np.array_equal(found.pixels, expected.pixels)


def test_a_transfer_syntax_of_numbers_is_a_refusal(tmp_path):
    path = dicom(tmp_path / "a.dcm")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x02\x00\x10\x00UI")
    data[at + 4 : at + 6] = b"SL"
    path.write_bytes(data)
    with pytest.raises(RadiographError, match="transfer syntax is not a UID"):
        read_picture(path, modalities=None)
