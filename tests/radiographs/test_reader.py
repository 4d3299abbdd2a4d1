from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hospital_files import radiograph
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Resized, SaveImage
from PIL import Image
from pydicom.dataset import Dataset as DicomDataset
from pydicom.uid import ExplicitVRLittleEndian

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.decode import list_images, read_picture
from afire_monai.radiographs.reader import RadiographReader

H, W = 20, 12
EIGHT_BIT = np.zeros((H, W), dtype=np.uint8)
EIGHT_BIT[:4, :3] = 255  # bright top left corner
EIGHT_BIT[-2:, :] = 51  # dim lowest rows
EXPECTED = EIGHT_BIT / 255.0


def png(path: Path, values: np.ndarray = EIGHT_BIT) -> Path:
    Image.fromarray(values).save(path, format="PNG")
    return path


def dicom(path: Path, values: np.ndarray = EIGHT_BIT) -> Path:
    dataset = DicomDataset()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Secret^Person", "ID-4711", "19700101"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset.Modality, dataset.PhotometricInterpretation = "CR", "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelSpacing = [0.2, 0.1]
    dataset.PixelData = values.tobytes()
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def read(path: Path, **options: object) -> np.ndarray:
    reader = RadiographReader(**options)  # type: ignore[arg-type]
    return reader.get_data(reader.read(path))[0]


# ---- array layout and range


@pytest.mark.parametrize("make", [png, dicom])
def test_rows_stay_rows_and_shape_is_channel_first(tmp_path: Path, make: object) -> None:
    array = read(make(tmp_path / "picture"))  # type: ignore[operator]
    assert array.shape == (1, H, W)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[0], EXPECTED, atol=1e-6)


def test_content_decides_over_suffix(tmp_path: Path) -> None:
    Image.fromarray(EIGHT_BIT).save(tmp_path / "picture.dcm", format="PNG")
    np.testing.assert_allclose(read(tmp_path / "picture.dcm")[0], EXPECTED, atol=1e-6)


def test_jpeg_is_close_to_its_original(tmp_path: Path) -> None:
    Image.fromarray(EIGHT_BIT).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(read(tmp_path / "a.jpg")[0], EXPECTED, atol=0.03)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_in_more_channels_is_read_like_one_channel(tmp_path: Path, mode: str) -> None:
    Image.fromarray(EIGHT_BIT).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_allclose(read(tmp_path / "a.png")[0], EXPECTED, atol=1e-6)


def test_three_channel_grey_jpeg_is_read(tmp_path: Path) -> None:
    smooth = (np.add.outer(np.arange(64), np.arange(64)) * 2).astype(np.uint8)
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "a.jpg", quality=75)
    np.testing.assert_allclose(read(tmp_path / "a.jpg")[0], smooth / 255.0, atol=0.03)


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    values = np.full((H, W, 2), 255, dtype=np.uint8)
    values[:5, :, 1] = 0
    Image.fromarray(values, mode="LA").save(tmp_path / "a.png")
    array = read(tmp_path / "a.png")[0]
    assert (array[:5] == 0).all()
    assert (array[5:] == 1).all()


def test_one_bit_picture_is_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(EIGHT_BIT > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], EIGHT_BIT > 100)


@pytest.mark.parametrize(("white", "divisor"), [("dtype", 65535), ("image", 4000), (4095, 4095)])
def test_sixteen_bit_png_is_scaled_by_the_chosen_white_level(tmp_path: Path, white: object, divisor: int) -> None:
    values = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)
    np.testing.assert_allclose(read(png(tmp_path / "a.png", values), png16_max=white)[0], values / divisor, rtol=1e-6)


def test_value_above_the_given_white_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RadiographError, match="largest value is 4000"):
        read(png(tmp_path / "a.png", np.array([[0, 4000]], dtype=np.uint16)), png16_max=1023)


# ---- NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(W, H), (W, H, 1), (W, H, 1, 1)])
def test_nifti_without_orientation_is_x_then_y(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    path = nifti(tmp_path / f"a{suffix}", EXPECTED.T.astype(np.float32).reshape(shape), np.eye(4))
    np.testing.assert_allclose(read(path)[0], EXPECTED, atol=1e-6)


@pytest.mark.parametrize("x_sign", [-1, 1])
@pytest.mark.parametrize("y_sign", [-1, 1])
def test_nifti_axes_are_flipped_so_that_left_is_right_and_the_back_is_below(
    tmp_path: Path, x_sign: int, y_sign: int
) -> None:
    # stored against the convention (columns to the patient's left, rows to the back): reverse the stored axis
    stored = EXPECTED.T[:: -1 if x_sign > 0 else 1, :: -1 if y_sign > 0 else 1]
    path = nifti(tmp_path / "a.nii", stored.astype(np.float32), np.diag([0.5 * x_sign, 0.25 * y_sign, 1, 1]))
    picture = read_picture(path)
    np.testing.assert_allclose(picture.pixels, EXPECTED, atol=1e-6)
    assert picture.spacing == (0.25, 0.5)
    assert picture.spacing_source == "NIfTI"


def test_coronal_slice_of_a_volume_has_the_feet_below(tmp_path: Path) -> None:
    volume = EXPECTED.T[::-1, None, ::-1].astype(np.float32)  # (left to right, 1, foot to head)
    np.testing.assert_allclose(read(nifti(tmp_path / "a.nii", volume, np.diag([2.0, 2, 2, 1])))[0], EXPECTED, atol=1e-6)


@pytest.mark.parametrize("make", [png, dicom])
def test_picture_saved_as_nifti_comes_back_upright(tmp_path: Path, make: object) -> None:
    image = LoadImage(reader=RadiographReader())(make(tmp_path / "in"))  # type: ignore[operator]
    SaveImage(tmp_path / "out", output_postfix="", separate_folder=False, resample=True, print_log=False)(image)
    (saved,) = (tmp_path / "out").glob("*.nii.gz")
    np.testing.assert_allclose(read(saved)[0], EXPECTED, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 51]], dtype=np.uint8), [0, 0.2]),  # 8 bit: /255
        (np.array([[0.25, 0.5]], dtype=np.float32), [0.25, 0.5]),  # in range: as stored
        (np.array([[-1000, 0, 1000]], dtype=np.int16), [0, 0.5, 1]),  # else minimum…maximum
        (np.array([[7, 7]], dtype=np.int16), [0, 0]),  # constant
    ],
)
def test_nifti_intensity_rule(tmp_path: Path, values: np.ndarray, expected: list[float]) -> None:
    path = nifti(tmp_path / "a.nii", np.concatenate([values, values]), np.eye(4))
    np.testing.assert_allclose(read(path)[0][:, 0], expected, atol=1e-6)


def test_nifti_of_eight_bits_that_are_rescaled_goes_from_minimum_to_maximum(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.array([[0, 100], [50, 200]], dtype=np.uint8), np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii")[0], [[0, 0.25], [0.5, 1]], atol=1e-6)


# ---- MONAI


def test_loadimaged_and_resized_work_with_the_metadata(tmp_path: Path) -> None:
    pipeline = Compose(
        [
            LoadImaged("image", reader=RadiographReader(), image_only=True),
            EnsureChannelFirstd("image"),
            Resized("image", spatial_size=(H // 2, W // 2), mode="area"),
        ]
    )
    image = pipeline({"image": str(dicom(tmp_path / "a.dcm"))})["image"]
    assert isinstance(image, MetaTensor)
    expected = EXPECTED.reshape(H // 2, 2, W // 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(image.pixdim[:2], [0.4, 0.2], rtol=1e-6)


def test_reader_can_be_named_by_a_string(tmp_path: Path) -> None:
    image = LoadImage(reader="afire_monai.radiographs.reader.RadiographReader")(png(tmp_path / "a.png"))
    assert image.shape == (1, H, W)


@pytest.mark.parametrize("unfit", ["read", "note"])
def test_values_of_headers_that_break_the_rules_are_in_no_log_and_no_warning(unfit, tmp_path, caplog, recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        radiograph(
            SOPInstanceUID="SECRETUID", PatientID="SECRETID" * 9, StudyDate="SECRETDATE", PatientAge="SECRETAGE"
        ).save_as(tmp_path / "odd.dcm")
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "pydicom")
    recwarn.clear()
    reader = RadiographReader(unfit=unfit)
    assert reader.get_data(reader.read(tmp_path / "odd.dcm"))[0].ndim == 3
    assert "SECRET" not in caplog.text + "".join(str(one.message) for one in recwarn.list)


def test_metadata_says_what_was_read_and_nothing_about_the_patient(tmp_path: Path) -> None:
    reader = RadiographReader()
    meta = reader.get_data(reader.read(dicom(tmp_path / "a.dcm")))[1]
    assert meta["original_channel_dim"] == 0
    np.testing.assert_array_equal(meta["spatial_shape"], [H, W])
    np.testing.assert_allclose(meta["spacing"], [0.2, 0.1])
    assert (meta["spacing_source"], meta["polarity_inverted"], meta["bits"]) == ("PixelSpacing", False, 8)
    assert not any(secret in str(meta) for secret in ("Secret", "4711", "1970", "1.2.3.4"))


def test_batch_may_mix_formats(tmp_path: Path) -> None:
    paths = [
        png(tmp_path / "a.png"),
        dicom(tmp_path / "a.dcm"),
        nifti(tmp_path / "a.nii", EXPECTED.T.copy(), np.eye(4)),
    ]
    dataset = Dataset([{"image": str(path)} for path in paths], LoadImaged("image", reader=RadiographReader()))
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["image"].shape == (3, 1, H, W)
    torch.testing.assert_close(batch["image"][0].as_tensor(), batch["image"][2].as_tensor())


def test_refusal_is_not_answered_by_another_reader_of_monai(tmp_path: Path) -> None:
    colour = np.zeros((H, W, 3), dtype=np.uint8)
    colour[..., 0] = 200
    with pytest.raises(RadiographError, match=r"colour\.png: colour image"):
        LoadImage(reader=RadiographReader())(png(tmp_path / "colour.png", colour))


def test_reader_survives_pickling_for_worker_processes(tmp_path: Path) -> None:
    reader = pickle.loads(pickle.dumps(RadiographReader(modalities=["OT"], png16_max="image")))
    assert (reader.modalities, reader.png16_max) == (("OT",), "image")


# ---- refusals


def animated(path: Path) -> None:
    frames = [Image.fromarray(EIGHT_BIT), Image.fromarray(255 - EIGHT_BIT)]
    frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:])


def truncated(path: Path, image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=image_format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_nifti(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    nifti(path.with_suffix(".nii"), noise, np.eye(4))
    path.write_bytes(path.with_suffix(".nii").read_bytes()[:1000])
    path.with_suffix(".nii").unlink()


def huge_png(path: Path) -> None:
    """A header that promises 25,000 × 25,000 pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 25_000, 25_000, 8, 0, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


BAD_FILES = {
    "empty": (lambda p: p.write_bytes(b""), "empty file"),
    "text": (lambda p: p.write_text("these are not the pixels you are looking for"), "not a radiograph file"),
    "tiff": (lambda p: Image.fromarray(EIGHT_BIT).save(p, format="TIFF"), "this is TIFF"),
    "gif": (lambda p: Image.fromarray(EIGHT_BIT).save(p, format="GIF"), "this is GIF"),
    "animated": (animated, "multi-frame"),
    "truncated_png": (lambda p: truncated(p, "PNG"), "broken or truncated"),
    "truncated_jpeg": (lambda p: truncated(p, "JPEG"), "broken or truncated"),
    "signature_only": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "broken or truncated"),
    "huge": (huge_png, "image too large"),
    "truncated_nifti": (truncated_nifti, "broken or truncated"),
    "missing": (lambda p: None, "not readable"),
    "folder": (lambda p: p.mkdir(), "not readable"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, kind = BAD_FILES[name]
    make(tmp_path / name)  # type: ignore[no-untyped-call]
    with pytest.raises(RadiographError, match=kind) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros((4, 5, 6), dtype=np.uint8), "multi-frame"),
        (np.zeros((4, 5), dtype=np.complex64), "colour image"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "not finite"),
        (np.array([[0.0, np.inf], [1.0, 2.0]]), "not finite"),
        (np.zeros((30_000, 2), dtype=np.uint8), "image too large"),
    ],
)
def test_unfit_nifti_is_refused_by_name(tmp_path: Path, values: np.ndarray, kind: str) -> None:
    with pytest.raises(RadiographError, match=rf"a\.nii: {kind}"):
        read(nifti(tmp_path / "a.nii", values, np.eye(4)))


def test_several_files_for_one_image_are_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    with pytest.raises(RadiographError, match=r"a\.png: several files"):
        LoadImage(reader=RadiographReader())([path, path])


# ---- listing


def test_listing_finds_radiographs_by_suffix_or_dicom_content_and_sorts_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    wanted = [tmp_path / "B.PNG", tmp_path / "a.jpeg", tmp_path / "sub" / "1.2.840.55", tmp_path / "sub" / "IM000"]
    for path in wanted[:2]:
        path.write_bytes(b"x")
    for path in wanted[2:]:
        dicom(path)
    for name in ("notes.txt", "README", "DICOMDIR", ".hidden/c.png"):
        (tmp_path / name).write_bytes(b"x")
    dicom(tmp_path / "DICOMDIR")
    assert list_images(tmp_path) == sorted(wanted)


@pytest.mark.parametrize("files", [("run.json", "index.csv"), ("predictions.json", "predictions.csv")])
def test_listing_leaves_out_pictures_of_predictions(tmp_path: Path, files: tuple[str, str]) -> None:
    (tmp_path / "out" / "heatmaps").mkdir(parents=True)
    for name in ("a.png", "out/b.png", "out/heatmaps/00000.png"):
        (tmp_path / name).touch()
    (tmp_path / "out" / files[0]).touch()
    assert len(list_images(tmp_path)) == 3
    (tmp_path / "out" / files[1]).touch()
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "out" / "b.png"]


def test_listing_of_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RadiographError, match="no such folder"):
        list_images(tmp_path / "nowhere")
