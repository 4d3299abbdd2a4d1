"""Every combination of how a radiograph can be stored gives the picture that a slow reference gives."""

from __future__ import annotations

import math
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_encoder
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.decode import read_picture

MODALITY = ("none", "rescale", "LUT")
VOI = ("none", "window", "LUT")
BITS = (8, 10, 12, 15, 16)
SHAPE = (40, 33)


def item(entries: list[int], first: int) -> list[Dataset]:
    """A LUT sequence; `first` is written as unsigned, the way a signed one is stored in a US element."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries) % 0x10000, first % 0x10000, 16])
    table.add_new("LUTData", "US", entries)
    return [table]


def modality_entries() -> list[int]:
    """512 entries, rising and not straight."""
    return [round(4000 * (i / 511) ** 1.5) for i in range(512)]


def voi_entries() -> list[int]:
    """4096 entries of 12 bits, falling then rising, so that an error in the index cannot hide."""
    return [abs(4095 - 2 * i) for i in range(4096)]


def values(bits: int, signed: bool) -> np.ndarray:
    """Stored values over the whole range, its ends among them."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    numbers = np.random.default_rng(bits).integers(low, high + 1, SHAPE)
    numbers[0, :2] = low, high
    kind = ("i" if signed else "u") + ("1" if bits == 8 else "2")
    return numbers.astype(kind)


def dataset(bits: int, signed: bool, photometric: str, modality: str, voi: str) -> Dataset:
    stored = values(bits, signed)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = made.SOPClassUID, "1.2.3.4"
    made.Modality, made.PhotometricInterpretation = "CR", photometric
    made.Rows, made.Columns = SHAPE
    made.SamplesPerPixel, made.PixelRepresentation = 1, int(signed)
    made.BitsAllocated, made.BitsStored, made.HighBit = stored.itemsize * 8, bits, bits - 1
    mask = (1 << bits) - 1
    content = (stored.astype(np.int32) & mask).astype("<u1" if bits == 8 else "<u2").tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    if modality == "rescale":
        made.RescaleSlope, made.RescaleIntercept, made.RescaleType = "1.5", "-20", "US"
    elif modality == "LUT":
        made.ModalityLUTSequence = item(modality_entries(), -100 if signed else 30)
    if voi == "window":
        made.WindowCenter, made.WindowWidth = "300", "500"
    elif voi == "LUT":
        made.VOILUTSequence = item(voi_entries(), 0)
    return made


def looked_up(entries: list[int], first: int, value: int) -> int:
    return entries[min(max(value - first, 0), len(entries) - 1)]


def slow(bits: int, signed: bool, photometric: str, modality: str, voi: str) -> np.ndarray:
    """PS3.3 C.11.1 and C.11.2, pixel by pixel, on Python's numbers."""
    numbers = []
    for stored in values(bits, signed).ravel().tolist():
        if modality == "rescale":
            numbers.append(stored * 1.5 - 20)
        elif modality == "LUT":
            numbers.append(float(looked_up(modality_entries(), -100 if signed else 30, stored)))
        else:
            numbers.append(float(stored))
    low, high = min(numbers), max(numbers)
    shown = []
    for number in numbers:
        if voi == "window":  # centre 300, width 500
            if number <= 300 - 0.5 - 499 / 2:
                grey = 0.0
            elif number > 300 - 0.5 + 499 / 2:
                grey = 1.0
            else:
                grey = (number - 299.5) / 499 + 0.5
        elif voi == "LUT":
            grey = looked_up(voi_entries(), 0, round_half_even(number)) / 4095
        else:
            grey = (number - low) / (high - low)
        shown.append(1 - grey if photometric == "MONOCHROME1" else grey)
    return np.array(shown).reshape(SHAPE)


def round_half_even(number: float) -> int:
    whole = math.floor(number)
    rest = number - whole
    return whole + (rest > 0.5 or (rest == 0.5 and whole % 2 == 1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("modality", "voi"), product(MODALITY, VOI))
def test_picture_is_that_of_the_slow_reference(tmp_path: Path, modality: str, voi: str, bits: int) -> None:
    for signed, photometric in product((False, True), ("MONOCHROME1", "MONOCHROME2")):
        dataset(bits, signed, photometric, modality, voi).save_as(tmp_path / "a.dcm", enforce_file_format=True)
        picture = read_picture(tmp_path / "a.dcm")
        expected = slow(bits, signed, photometric, modality, voi)
        np.testing.assert_allclose(picture.pixels, expected, atol=2e-7, err_msg=f"{signed} {photometric}")
        assert picture.polarity_inverted is (photometric == "MONOCHROME1")
        assert picture.bits == bits


@pytest.mark.parametrize("bits", [10, 12, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_unused_bits_above_the_stored_ones_do_not_count(tmp_path: Path, bits: int, signed: bool) -> None:
    made = dataset(bits, signed, "MONOCHROME2", "none", "window")
    dirty = np.frombuffer(made.PixelData, "<u2") | np.uint16(0xFFFF << bits & 0xFFFF)
    made.PixelData = dirty.tobytes()
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = slow(bits, signed, "MONOCHROME2", "none", "window")
    np.testing.assert_allclose(read_picture(tmp_path / "a.dcm").pixels, expected, atol=2e-7)


# ---- codecs


def compress(source: Path, target: Path, codec: str) -> None:
    """Write a lossless copy, with pydicom's encoders or with those of DCMTK."""
    if codec in ("dcmcjpls", "dcmcrle", "dcmcjpeg"):
        tool = shutil.which(codec)
        if tool is None:
            pytest.skip(f"{codec} (DCMTK) is not installed")
        subprocess.run([tool, str(source), str(target)], check=True, timeout=60, capture_output=True)
        return
    made = dcmread(source)
    syntax = {"JPEG 2000": JPEG2000Lossless, "JPEG-LS": JPEGLSLossless, "RLE": RLELossless}[codec]
    if not get_encoder(syntax).is_available:
        pytest.skip(f"no encoder for {codec} is installed")
    made.compress(syntax, generate_instance_uid=False)
    made.save_as(target)


CODECS = ("JPEG 2000", "JPEG-LS", "RLE", "dcmcjpls", "dcmcrle", "dcmcjpeg")


@pytest.mark.real_data
@pytest.mark.parametrize("codec", CODECS)
def test_chest_is_the_same_picture_in_every_lossless_codec(real_data: Path, tmp_path: Path, codec: str) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    source = real_data / "dicom" / "chest" / "cr_mono1_10bit_explicit.dcm"
    compress(source, tmp_path / "a.dcm", codec)
    assert dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_picture(tmp_path / "a.dcm").pixels, read_picture(source).pixels)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True), (16, True)])
def test_codecs_keep_depth_and_sign(tmp_path: Path, codec: str, bits: int, signed: bool) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    made = dataset(bits, signed, "MONOCHROME1", "rescale", "window")
    made.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    compress(tmp_path / "plain.dcm", tmp_path / "a.dcm", codec)
    expected = slow(bits, signed, "MONOCHROME1", "rescale", "window")
    np.testing.assert_allclose(read_picture(tmp_path / "a.dcm").pixels, expected, atol=2e-7)


def test_codec_copy_cut_short_is_refused(tmp_path: Path) -> None:
    made = dataset(12, False, "MONOCHROME2", "none", "none")
    made.compress(RLELossless)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-60])
    with pytest.raises(RadiographError):
        read_picture(tmp_path / "a.dcm")
