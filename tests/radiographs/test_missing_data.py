"""JPEG data that end early behind a valid end marker."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame

from afire_monai.core.errors import RadiographError
from afire_monai.datalists.check import check_files
from afire_monai.radiographs.decode import read_picture

RAMP = np.add.outer(np.arange(120), np.arange(90)).astype(np.uint8)
NOISY = RAMP + np.random.default_rng(0).integers(0, 30, RAMP.shape).astype(np.uint8)


def jpeg(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", **options)
    return file.getvalue()


def cut(stream: bytes, share: float) -> bytes:
    """Return the stream without the last part of its data, but with an end marker."""
    start = stream.index(b"\xff\xda") + 14
    return stream[: start + int((len(stream) - start) * share)] + b"\xff\xd9"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_without_a_part_of_its_data_is_refused(tmp_path: Path, options: dict, channels: int, share: float) -> None:
    values = NOISY if channels == 1 else np.stack([NOISY] * 3, -1)
    path = tmp_path / "a.jpg"
    path.write_bytes(cut(jpeg(values, **options), share))
    with pytest.raises(RadiographError, match=r"data are missing before the end marker|do not decode"):
        read_picture(path)
    assert [refused.kind for refused in check_files([str(path)]).refused] == ["broken or truncated"]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("grey", [0, 127, 128, 255])
def test_whole_jpeg_that_ends_flat_is_read(tmp_path: Path, options: dict, grey: int) -> None:
    values = NOISY.copy()
    values[64:] = grey
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(values, **options) + b"behind the picture")
    np.testing.assert_allclose(read_picture(path).pixels[72:], grey / 255, atol=0.02)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "chest/cr_siim_mono2_8bit_jpeg_baseline",
        "other_cr/extremity_mono1_jpeg_lossless",
        "other_cr/extremity_mono1_jpegls_lossless",
    ],
)
def test_dicom_without_a_part_of_its_data_is_refused(real_data: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    source = real_data / "dicom" / f"{name}.dcm"
    assert read_picture(source).pixels.max() > 0
    dataset = dcmread(source)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    for share in (0.3, 0.9):
        dataset.PixelData = encapsulate([frame[: int(len(frame) * share)] + b"\xff\xd9"])
        dataset.save_as(tmp_path / "a.dcm")
        with pytest.raises(RadiographError, match="data are missing before the end marker"):
            read_picture(tmp_path / "a.dcm")
