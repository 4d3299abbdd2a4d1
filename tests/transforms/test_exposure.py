from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from afire_monai.core.errors import AfireError
from afire_monai.transforms import ExposureChange


def test_change_equals_the_formula_written_out_image_by_image():
    images = torch.rand(4, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    uniforms = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.25, 0.0], [0.5, 0.5, 0.5], [0.3, 0.9, 1.0]])
    changed = ExposureChange(gamma=0.5, contrast=0.2, brightness=0.1)(images, uniforms)
    for image, u, result in zip(images.double().numpy(), uniforms.double().numpy(), changed.numpy(), strict=True):
        bent = image ** (1.5 ** (2 * u[0] - 1))
        expected = bent.mean() + (bent - bent.mean()) * (1 + 0.2 * (2 * u[1] - 1)) + 0.1 * (2 * u[2] - 1)
        np.testing.assert_allclose(result, expected.clip(0, 1), atol=1e-6)
    torch.testing.assert_close(changed[2], images[2])


def test_each_image_is_blurred_by_its_own_gaussian_before_its_exposure_changes():
    images = torch.rand(3, 2, 12, 15, generator=torch.Generator().manual_seed(0))
    uniforms = torch.tensor([[0.5, 0.5, 0.5, 0.0], [0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 0.4]])
    changed = ExposureChange(brightness=0.1, blur=1.5)(images, uniforms)
    torch.testing.assert_close(changed[0], images[0])
    for place, deviation, added in ((1, 1.5, 0.0), (2, 0.6, 0.1)):
        for image, result in zip(images[place].numpy(), changed[place].numpy(), strict=True):
            expected = gaussian_filter(image.astype(np.float64), deviation, mode="mirror", radius=6) + added
            np.testing.assert_allclose(result, expected.clip(0, 1), atol=1e-5)


def test_negative_changes_are_refused():
    with pytest.raises(AfireError, match="contrast -1"):
        ExposureChange(contrast=-1)
