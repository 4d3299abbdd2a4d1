from __future__ import annotations

import nibabel
import numpy as np
import pytest
from label_phantoms import SHAPE, phantom
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.label.images import Grid, read_label, to_rows, write_map

MASK = phantom(3)[1]
MASK[:6, :9] = 2  # a mark in one corner


def test_phantom_mask_has_no_symmetry_that_could_hide_a_flip():
    assert MASK.shape == SHAPE
    for other in (MASK[::-1], MASK[:, ::-1], MASK[::-1, ::-1]):
        assert (other != MASK).any()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".png"])
def test_what_is_written_is_read_back_pixel_by_pixel(suffix, tmp_path):
    grid = Grid(SHAPE, (0.2, 0.3))
    assert (read_label(write_map(tmp_path / f"m{suffix}", MASK, grid), grid) == MASK).all()


def test_nifti_lies_where_itk_places_the_picture(tmp_path):
    """ITK: column c and row r of a flat picture lie c and r steps to the left and back; NIfTI counts the other way."""
    grid = Grid(SHAPE, (0.2, 0.3))
    image = nibabel.load(write_map(tmp_path / "m.nii.gz", MASK, grid))
    values = np.asanyarray(image.dataobj)
    for row, column in ((0, 0), (5, 70), (90, 2)):
        right, front, _ = image.affine[:3, :3] @ [column, row, 0] + image.affine[:3, 3]
        assert (right, front) == pytest.approx((-column * 0.3, -row * 0.2))
        assert values[column, row, 0] == MASK[row, column]


@pytest.mark.parametrize("axes", ["xy", "yx"])
@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_any_order_and_sign_of_axes_comes_back_upright(axes, signs, tmp_path):
    """Store the mask with axes to the patient's left (x) or back (y) in any order and direction."""
    values = MASK.T if axes == "xy" else MASK
    steps = (
        np.diag([0.3 * signs[0], 0.2 * signs[1]])
        if axes == "xy"
        else np.array([[0, 0.3 * signs[1]], [0.2 * signs[0], 0]])
    )
    for axis, sign in enumerate(signs):
        values = np.flip(values, axis) if sign < 0 else values
    affine = np.eye(4)
    affine[:2, :2] = -steps  # NIfTI's axes run to the right and to the front
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values)[..., None], affine), tmp_path / "m.nii.gz")
    assert (read_label(tmp_path / "m.nii.gz", Grid(SHAPE, (0.2, 0.3))) == MASK).all()


def test_nifti_without_orientation_has_columns_first(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(MASK.T)[..., None], np.eye(4)), tmp_path / "m.nii.gz")
    assert (read_label(tmp_path / "m.nii.gz", Grid(SHAPE)) == MASK).all()


def test_nifti_whose_header_says_nothing_of_orientation_is_read_as_radiographs_are(tmp_path):
    """The reading library makes up an affine that would turn the mask upside down."""
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(MASK.T)[..., None], None), tmp_path / "m.nii.gz")
    assert (read_label(tmp_path / "m.nii.gz", Grid(SHAPE)) == MASK).all()


def test_a_picture_whose_columns_run_to_the_right_keeps_its_stored_rows_and_columns(tmp_path):
    """ImageOrientationPatient (-1, 0, 0, 0, 0, -1): a map on its grid must not be turned to the usual view."""
    turned = Grid(SHAPE, (0.2, 0.3), np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]), np.array([5.0, 6, 7]))
    path = write_map(tmp_path / "m.nii.gz", MASK, turned)
    assert (read_label(path, turned) == MASK).all()
    image = nibabel.load(path)
    assert image.affine[:3, :3] @ [1, 0, 0] == pytest.approx([0.3, 0, 0])  # a column further is to the right
    assert image.affine[:3, :3] @ [0, 1, 0] == pytest.approx([0, 0, -0.2])  # a row further is to the feet
    assert image.affine[:3, 3] == pytest.approx([-5, -6, 7])


def test_bytes_of_a_browser_are_rows(tmp_path):
    MASK.tofile(tmp_path / "label.bin")
    assert (read_label(tmp_path / "label.bin", Grid(SHAPE)) == MASK).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.png", np.zeros(SHAPE[::-1], np.uint8), "78 rows and 96 columns"),
        ("m.png", np.zeros((*SHAPE, 3), np.uint8), "mode RGB"),
        ("m.bin", np.zeros(100, np.uint8), "100 bytes"),
        ("m.nii.gz", np.zeros((78, 96, 2), np.uint8), "one slice"),
        ("m.nii.gz", np.full((78, 96, 1), 0.5, np.float32), "whole numbers"),
        ("m.nii.gz", np.full((78, 96, 1), -1, np.int16), "-1 to -1"),
        ("m.nii.gz", np.full((78, 96, 1), np.nan, np.float32), "whole numbers"),
        ("m.nii.gz", np.full((78, 96, 1), 1 + 2j, np.complex64), "whole numbers"),
        ("m.nii.gz", np.zeros((78, 96, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "whole numbers"),
        ("m.txt", None, ".nii.gz"),
        ("m.png", None, "not a readable .png"),
        ("m.nii.gz", None, "not a readable .nii.gz"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_words(name, content, words, tmp_path):
    path = tmp_path / name
    if content is None:
        path.write_bytes(b"something else")
    elif name.endswith(".png"):
        Image.fromarray(content).save(path)
    elif name.endswith(".bin"):
        content.tofile(path)
    else:
        nibabel.save(nibabel.Nifti1Image(content, np.diag([-1, -1, 1, 1])), path)
    with pytest.raises(AfireError, match=words) as caught:
        read_label(path, Grid(SHAPE))
    assert str(tmp_path) not in str(caught.value)


def test_oblique_axes_are_refused():
    tilt = np.array([[0.7, -0.7, 0], [0.7, 0.7, 0], [0, 0, 1]])
    with pytest.raises(AfireError, match="do not lie along"):
        to_rows(MASK.T, tilt, Grid(SHAPE))


def test_axes_of_another_plane_are_refused():
    with pytest.raises(AfireError, match="do not lie along"):
        to_rows(MASK.T, np.eye(3)[:, [0, 2]], Grid(SHAPE))
