from __future__ import annotations

import csv
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.dicom_pixels import render

RAMP = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)


def make(values: np.ndarray = RAMP, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset.PatientName, dataset.PatientID = "Secret^Person", "ID-4711"
    dataset.Modality, dataset.PhotometricInterpretation = "CR", "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel = 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = values.itemsize * 8, bits, bits - 1
    dataset.PixelData = values.tobytes()
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = syntax
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(entries: list[int], first: int = 0, depth: int = 16) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, depth])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


# ---- polarity and VOI, every combination


WINDOW = {"WindowCenter": 1024.5, "WindowWidth": 1025}  # LINEAR: 0 at 512, 1 at 1536
CURVE = {"VOILUTSequence": lut([round(4095 * (i / 4095) ** 0.5) for i in range(4096)], depth=12)}
SHOWN = {
    "no VOI": ({}, RAMP / 4032),
    "window": (WINDOW, np.clip((RAMP - 512.0) / 1024, 0, 1)),
    "VOI LUT": (CURVE, np.sqrt(RAMP / 4095)),
    "VOI LUT wins over window": (CURVE | WINDOW, np.sqrt(RAMP / 4095)),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("voi", SHOWN)
def test_inversion_comes_after_voi(tmp_path: Path, photometric: str, voi: str) -> None:
    elements, expected = SHOWN[voi]
    picture = read_picture(save(make(PhotometricInterpretation=photometric, **elements), tmp_path / "a.dcm"))
    inverted = photometric == "MONOCHROME1"
    np.testing.assert_allclose(picture.pixels, 1 - expected if inverted else expected, atol=5e-4)
    assert picture.polarity_inverted is inverted


@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_presentation_lut_shape_never_inverts_a_second_time(shape: str, photometric: str) -> None:
    plain = render(RAMP, make(PhotometricInterpretation=photometric))[0]
    np.testing.assert_array_equal(
        render(RAMP, make(PhotometricInterpretation=photometric, PresentationLUTShape=shape))[0], plain
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rescale", [None, (0.5, -300.0)])
def test_windows_agree_with_pydicom(function: str, signed: bool, rescale: tuple[float, float] | None) -> None:
    values = RAMP.astype(np.int16) - 2048 if signed else RAMP
    elements: dict[str, Any] = {"WindowCenter": [200, 9], "WindowWidth": [900, 1], "VOILUTFunction": function}
    low, high = (-2048.0, 2047.0) if signed else (0.0, 4095.0)
    if rescale:
        elements |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
        low, high = (v * rescale[0] + rescale[1] for v in (low, high))
    dataset = make(values, **elements)
    reference = (apply_windowing(apply_modality_lut(values, dataset), dataset) - low) / (high - low)
    np.testing.assert_allclose(render(values, dataset)[0], reference, atol=1e-6)


def test_lookup_tables_agree_with_pydicom() -> None:
    modality = [min(65535, i * i // 300) for i in range(3000)]
    curve = [65535 - i for i in range(65536)]
    dataset = make(ModalityLUTSequence=lut(modality, first=100), VOILUTSequence=lut(curve, first=0))
    reference = apply_voi(apply_modality_lut(RAMP, dataset), dataset) / 65535
    np.testing.assert_allclose(render(RAMP, dataset)[0], reference, atol=1e-6)


def test_negative_slope_turns_values_round_before_the_window() -> None:
    dataset = make(
        RescaleSlope=-1, RescaleIntercept=4095, VOILUTFunction="LINEAR_EXACT", WindowCenter=2000, WindowWidth=4000
    )
    np.testing.assert_allclose(render(RAMP, dataset)[0], np.clip((4095.0 - RAMP) / 4000, 0, 1), atol=1e-6)


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_white_of_a_table_is_that_of_its_entries_whatever_depth_is_declared(depth: int) -> None:
    dataset = make(VOILUTSequence=lut(list(range(4096)), depth=depth))
    np.testing.assert_allclose(render(RAMP, dataset)[0], RAMP / 4095, atol=1e-6)


def test_table_in_bytes_is_read_one_or_two_bytes_an_entry(tmp_path: Path) -> None:
    values = (RAMP // 16).astype(np.uint8)
    for data, depth in ((bytes(range(256)), 8), (np.arange(256, dtype="<u2").tobytes(), 16)):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [256, 0, depth])
        item.add_new("LUTData", "OW", data)
        path = save(make(values, bits=8, VOILUTSequence=Sequence([item])), tmp_path / "a.dcm")
        np.testing.assert_allclose(read_picture(path).pixels, values / 255, atol=1e-6)


@pytest.mark.parametrize(("index", "low"), [(0, 0), (1, 1000)])
def test_window_can_be_chosen(tmp_path: Path, index: int, low: int) -> None:
    elements = {"WindowCenter": [500, 1500], "WindowWidth": [1000, 1000], "VOILUTFunction": "LINEAR_EXACT"}
    picture = read_picture(save(make(**elements), tmp_path / "a.dcm"), window_index=index)
    np.testing.assert_allclose(picture.pixels, np.clip((RAMP - float(low)) / 1000, 0, 1), atol=1e-6)


@pytest.mark.parametrize("width", [0, -5])
def test_window_without_valid_width_falls_back_to_the_range_of_the_image(width: int) -> None:
    pixels, intensity, _ = render(RAMP, make(WindowCenter=100, WindowWidth=width))
    np.testing.assert_allclose(pixels, RAMP / 4032, atol=1e-6)
    assert intensity.startswith("minimum")


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "slope 0"),
        ({"WindowCenter": [1, 2], "WindowWidth": [3, 4], "index": 2}, "window_index is 2"),
    ],
)
def test_intensity_transformation_that_cannot_be_applied_is_refused(
    tmp_path: Path, elements: dict[str, Any], message: str
) -> None:
    elements = dict(elements)
    index = elements.pop("index", 0)
    with pytest.raises(RadiographError, match=rf"a\.dcm: unusable intensity transformation: .*{message}"):
        read_picture(save(make(**elements), tmp_path / "a.dcm"), window_index=index)


# ---- signed values, padding, spacing


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_counts_neither_for_range_nor_as_tissue(tmp_path: Path, photometric: str) -> None:
    values = np.array([[-2000, -1990, 0, 100], [200, 300, 400, 100]], dtype=np.int16)
    dataset = make(values, bits=16, PhotometricInterpretation=photometric)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1980)
    tissue = np.array([[0, 0.25], [1, 0.25]])
    expected = np.zeros((2, 4))
    expected[:, 2:] = tissue if photometric == "MONOCHROME2" else 1 - tissue
    expected[1, :2] = [0.5, 0.75] if photometric == "MONOCHROME2" else [0.5, 0.25]
    np.testing.assert_allclose(read_picture(save(dataset, tmp_path / "a.dcm")).pixels, expected, atol=1e-6)


def test_picture_of_padding_only_is_refused(tmp_path: Path) -> None:
    dataset = make(np.zeros((4, 4), dtype=np.uint16))
    dataset.add_new("PixelPaddingValue", "US", 0)
    with pytest.raises(RadiographError, match="all pixels are padding"):
        read_picture(save(dataset, tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    ("elements", "spacing", "source"),
    [
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.4, 0.3]}, (0.2, 0.1), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.4, 0.3]}, (0.4, 0.3), "ImagerPixelSpacing"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.4, 0.3]}, (0.4, 0.3), "ImagerPixelSpacing"),
        ({}, (np.nan, np.nan), "none"),
    ],
)
def test_spacing_and_where_it_came_from(
    tmp_path: Path, elements: dict[str, Any], spacing: tuple[float, float], source: str
) -> None:
    picture = read_picture(save(make(**elements), tmp_path / "a.dcm"))
    np.testing.assert_allclose(picture.spacing, spacing)
    assert picture.spacing_source == source


# ---- files


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_file_without_preamble_and_meta_is_read(tmp_path: Path, syntax: Any) -> None:
    dataset = make(syntax=syntax)
    del dataset.file_meta
    implicit = syntax == ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "IM0001", implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    np.testing.assert_allclose(read_picture(tmp_path / "IM0001").pixels, RAMP / 4032, atol=1e-6)


def test_asymmetric_picture_is_not_transposed(tmp_path: Path) -> None:
    values = np.zeros((10, 6), dtype=np.uint16)
    values[0, 1:3] = 4095
    assert np.argwhere(read_picture(save(make(values), tmp_path / "a.dcm")).pixels).tolist() == [[0, 1], [0, 2]]


BAD = {
    "modality CT": {"Modality": "CT"},
    "modality OT": {"Modality": "OT"},
    "modality SEG": {"Modality": "SEG"},
    "modality absent": {"Modality": None},
    "multi-frame": {"NumberOfFrames": 2, "PixelData": RAMP.tobytes() * 2},
    "colour image": {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0},
    "image too large": {"Rows": 60000, "Columns": 60000},
    "empty image": {"Rows": 0},
    "broken or truncated": {"PixelData": RAMP.tobytes()[:-10]},
}


@pytest.mark.parametrize("kind", BAD)
def test_unfit_dataset_is_refused_by_name_and_without_patient_data(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RadiographError, match=rf"a\.dcm: {kind}") as caught:
        read_picture(save(make(**BAD[kind]), tmp_path / "a.dcm"))
    assert "Secret" not in str(caught.value)
    assert "4711" not in str(caught.value)


def test_dataset_without_pixels_is_refused(tmp_path: Path) -> None:
    dataset = make()
    del dataset.PixelData
    with pytest.raises(RadiographError, match="no pixels"):
        read_picture(save(dataset, tmp_path / "a.dcm"))


def test_other_modality_is_read_when_asked_for(tmp_path: Path) -> None:
    path = save(make(Modality="OT"), tmp_path / "a.dcm")
    for modalities in (["OT"], "CR, ot", None):
        np.testing.assert_allclose(read_picture(path, modalities).pixels, RAMP / 4032, atol=1e-6)


def test_colour_in_three_grey_samples_is_said(tmp_path: Path) -> None:
    values = np.repeat(RAMP[..., None], 3, axis=2).tobytes()
    path = save(make(SamplesPerPixel=3, PlanarConfiguration=0, PixelData=values), tmp_path / "a.dcm")
    with pytest.raises(
        RadiographError, match="MONOCHROME2 with 3 samples a pixel; MONOCHROME1 or MONOCHROME2 with one"
    ):
        read_picture(path)


def test_missing_codec_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make()
    dataset.compress(RLELossless)
    path = save(dataset, tmp_path / "a.dcm")
    decoder = get_decoder(RLELossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(RadiographError, match=r"codec not installed: .*RLE.*afire-monai\[dicom\]"):
        read_picture(path)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_file_is_refused(tmp_path: Path, keep: float, compressed: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 4095, (64, 64), dtype=np.uint16)
    dataset = make(noise)
    if compressed:
        dataset.compress(RLELossless)
    path = save(dataset, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(RadiographError, match=r"a\.dcm"):
        read_picture(path)


def test_damaged_bytes_give_a_picture_in_range_or_a_refusal(tmp_path: Path) -> None:
    whole = save(make(**WINDOW, **CURVE, PixelSpacing=[1, 1], NumberOfFrames=1), tmp_path / "a.dcm").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    warnings.simplefilter("ignore")  # about each damaged element
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(128, len(whole), size=4):
            damaged[position if rng.random() < 0.3 else 128 + position % 700] = rng.integers(256)
        (tmp_path / "a.dcm").write_bytes(damaged)
        try:
            pixels = read_picture(tmp_path / "a.dcm").pixels
        except RadiographError:
            refused += 1
        else:
            assert pixels.min() >= 0
            assert pixels.max() <= 1
    assert 0 < refused < 300


def test_unknown_transfer_syntax_is_refused(tmp_path: Path) -> None:
    path = save(make(), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.9.9.9\x00"))
    with pytest.raises(RadiographError, match="unsupported codec"):
        read_picture(path)


# ---- real files


@pytest.mark.real_data
def test_every_file_of_the_corpus_is_read_or_refused_as_its_manifest_says(real_data: Path) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    with (real_data / "dicom" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 26
    for row in rows:
        path = real_data / row["path"]
        headless = path.name == "cr_mono1_10bit_headless.dcm"
        if row["modality"] in ("CR", "DX") and (row["decodes"] == "yes" or headless):
            picture = read_picture(path)
            assert picture.pixels.shape == (int(row["rows"]), int(row["columns"])), row["path"]
            assert picture.pixels.min() >= 0, row["path"]
            assert picture.pixels.max() <= 1, row["path"]
            assert picture.pixels.std() > 0.01, row["path"]
            assert picture.polarity_inverted is (row["photometric"] == "MONOCHROME1")
        else:
            with pytest.raises(RadiographError, match=path.name):
                read_picture(path)


@pytest.mark.real_data
def test_files_that_differ_in_the_photometric_tag_give_complementary_pictures(real_data: Path) -> None:
    first = read_picture(real_data / "dicom/chest/cr_siim_mono2_8bit_jpeg_baseline.dcm").pixels
    second = read_picture(real_data / "dicom/chest/cr_siim_mono1_tag_changed.dcm").pixels
    np.testing.assert_allclose(first + second, 1, atol=1e-6)


@pytest.mark.real_data
def test_headless_copy_gives_the_same_picture(real_data: Path) -> None:
    folder = real_data / "dicom" / "chest"
    pictures = [read_picture(folder / f"cr_mono1_10bit_{kind}.dcm").pixels for kind in ("explicit", "headless")]
    for one, other in pairwise(pictures):
        np.testing.assert_array_equal(one, other)


@pytest.mark.real_data
def test_truncated_jpeg2000_is_refused(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "dicom/chest/cr_rg1_mono1_15bit_j2k_lossy.dcm"
    assert dcmread(source, stop_before_pixels=True).file_meta.TransferSyntaxUID != JPEG2000Lossless
    (tmp_path / "a.dcm").write_bytes(source.read_bytes()[:300_000])
    with pytest.raises(RadiographError, match=r"a\.dcm"):
        read_picture(tmp_path / "a.dcm")
