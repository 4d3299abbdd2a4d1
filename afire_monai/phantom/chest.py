"""The chest phantom: a frontal radiograph from a seed, normal or with one finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes, find_objects, label

from afire_monai.core.errors import AfireError
from afire_monai.phantom.anatomy import build_scene
from afire_monai.phantom.exposure import Exposure
from afire_monai.phantom.findings import FINDINGS
from afire_monai.phantom.shapes import Array

PHANTOM_LABELS = ("Nodule", "Consolidation", "Effusion", "Pneumothorax")

# a change below this share of the display range cannot be seen and does not count as finding
_VISIBLE = 2 / 255
_SMALLEST_SIZE = 32

Box = tuple[int, int, int, int, str]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class PhantomSample:
    """One picture and what is known of it.

    Attributes:
        image: (1, H, W) float32 in 0…1, bright = dense, row 0 at the top, the patient's left on the right.
        mask: (1, H, W) uint8, 1 where the finding changes the picture, all 0 if normal.
        lungs: (1, H, W) uint8, 1 right lung (left half of the picture), 2 left lung, 0 elsewhere; the same with and
            without a finding.
        label: 0 or 1 for each of `PHANTOM_LABELS`.
        boxes: (x, y, width, height, name) in pixels for each connected part of the mask, top left corner.
        seed: the seed that gives this anatomy.
    """

    image: Array
    mask: Mask
    lungs: Mask
    label: dict[str, int]
    boxes: list[Box]
    seed: int


class ChestPhantom:
    """Draws frontal chest radiographs from seeds, normal or with one finding.

    A patient is a sum of line integrals (torso minus lungs plus heart, vessels and bones); the beam is attenuated
    exponentially, scattered, blurred, made noisy and shown on a logarithmic scale. This project's own construction.

    Args:
        size: side of the square picture in pixels, at least 32.
        findings: names of the findings that may be asked for, out of nodule, consolidation, effusion, pneumothorax.

    Raises:
        AfireError: the size is too small, or a finding is not known.
    """

    def __init__(
        self, size: int = 256, findings: Sequence[str] = ("nodule", "consolidation", "effusion", "pneumothorax")
    ) -> None:
        if size < _SMALLEST_SIZE:
            raise AfireError(f"size: {size} pixels are too few for a chest phantom; give at least {_SMALLEST_SIZE}.")
        unknown = sorted(set(findings) - set(FINDINGS))
        if unknown:
            raise AfireError(f"findings: {unknown} are not known; choose from {sorted(FINDINGS)}.")
        self.size = size
        self.findings = tuple(findings)

    def __call__(self, seed: int, finding: str | None = None) -> PhantomSample:
        """Draw one picture.

        Args:
            seed: decides anatomy, exposure and noise; with and without a finding they are the same.
            finding: one of `findings`, or None for a normal picture.

        Returns:
            The picture with its masks, label and boxes.

        Raises:
            AfireError: the finding is not one of this phantom's.
        """
        if finding is not None and finding not in self.findings:
            raise AfireError(f"finding: {finding!r} is not one of this phantom's; choose from {list(self.findings)}.")
        scene = build_scene(self.size, np.random.default_rng([seed, 0]))
        rng = np.random.default_rng([seed, 1])
        exposure = Exposure.draw(rng)
        noise = rng.standard_normal((self.size, self.size), dtype=np.float32)
        scattered = exposure.scattered(scene.attenuation)
        signal = exposure.signal(scene.attenuation, scattered)
        window = exposure.window(signal)
        image = exposure.show(signal, window, noise)
        mask = np.zeros(image.shape, dtype=np.uint8)
        if finding is not None:
            changed = FINDINGS[finding](scene, np.random.default_rng([seed, 2, list(FINDINGS).index(finding)]))
            # scatter of the normal patient for both: a finding must change no pixel far away from it
            abnormal_signal = exposure.signal(changed, scattered)
            difference = exposure.show(abnormal_signal, window) - exposure.show(signal, window)
            mask = _finding_mask(np.abs(difference))
            image = np.where(mask > 0, exposure.show(abnormal_signal, window, noise), image)
        return PhantomSample(
            image=image[None],
            mask=mask[None],
            lungs=scene.lungs[None],
            label={name: int(finding is not None and name.lower() == finding) for name in PHANTOM_LABELS},
            boxes=_boxes(mask, (finding or "").capitalize()),
            seed=seed,
        )


def _finding_mask(difference: Array) -> Mask:
    """Where a change (H, W) is seen, without cracks in it and without parts under a tenth of the largest one."""
    mask = binary_closing(np.pad(difference > _VISIBLE, 2), iterations=2)[2:-2, 2:-2]
    mask = binary_fill_holes(mask) & (difference > 0)
    parts, count = label(mask)
    if count == 0:
        return mask.astype(np.uint8)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept: Mask = (sizes >= 0.1 * sizes.max())[parts].astype(np.uint8)
    return kept


def _boxes(mask: Mask, name: str) -> list[Box]:
    slices = find_objects(label(mask)[0])
    return [(c.start, r.start, c.stop - c.start, r.stop - r.start, name) for r, c in slices]
