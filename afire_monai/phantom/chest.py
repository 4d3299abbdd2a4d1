"""The chest phantom: a frontal radiograph from a seed, normal or with one finding, and a data set of them on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes, find_objects, gaussian_filter, label

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.files import write_text
from afire_monai.phantom.anatomy import (
    TABLE_AXIS,
    Array,
    Rng,
    Scene,
    blur,
    branching_tree,
    build_scene,
    cage_table,
    look_up,
    ramp,
    splat,
)
from afire_monai.radiographs.raster import write_png


@dataclass(frozen=True)
class Exposure:
    """How one picture is taken and shown; every field is drawn from the seed."""

    beam: float  # attenuation of one torso depth of tissue
    scatter: float  # scattered light as a share of the primary light
    blur: float  # detector blur in pixels of a 256-pixel picture
    quanta: float  # photons per pixel of the open beam
    dark: float  # share of the display range below the lungs
    curve: float  # steepness of the display curve
    gamma: float
    border: tuple[float, float, float, float]  # collimated share at top, bottom, left and right

    @classmethod
    def draw(cls, rng: Rng) -> Exposure:
        """Draw an exposure from a generator."""
        border = rng.uniform(0.0, 0.06, 4) * (rng.random(4) < 0.5) if rng.random() < 0.2 else np.zeros(4)
        return cls(
            beam=rng.uniform(2.6, 3.2),
            scatter=rng.uniform(0.25, 0.5),
            blur=rng.uniform(0.45, 0.8),
            quanta=rng.uniform(1.5e4, 8e4),
            dark=rng.uniform(0.10, 0.22),
            curve=rng.uniform(0.7, 1.3),
            gamma=rng.uniform(0.9, 1.15),
            border=(float(border[0]), float(border[1]), float(border[2]), float(border[3])),
        )

    def scattered(self, attenuation: Array) -> Array:
        """Scattered light (H, W) behind a patient, relative to the open beam."""
        light = np.exp(-self.beam * np.minimum(attenuation, 3))
        # most scatter arises where much light enters the patient; none arises outside the body
        return self.scatter * blur(light * np.minimum(attenuation * 2, 1), light.shape[0] * 0.08) + 0.004

    def signal(self, attenuation: Array, scattered: Array) -> Array:
        """Light at the detector (H, W), without noise, relative to the open beam."""
        size = attenuation.shape[0]
        return blur(np.exp(-self.beam * attenuation), self.blur * size / 256) + scattered

    def window(self, signal: Array) -> tuple[float, float]:
        """Lowest and highest log signal shown, from the picture without a finding."""
        density = -np.log(signal[::4, ::4])
        low, high = np.quantile(density[density > 0.35], (0.02, 0.995))
        return float(low - self.dark * (high - low)), float(high)

    def show(self, signal: Array, window: tuple[float, float], noise: Array | None = None) -> Array:
        """Picture (H, W) in 0…1, bright = dense; `noise` (H, W) is a standard normal field."""
        if noise is not None:
            signal = np.maximum(signal + noise * np.sqrt(signal / self.quanta), 1e-4)
        low, high = window
        level = np.clip((-np.log(signal) - low) / (high - low), 0, 1.05)
        k = self.curve
        shown = 0.5 + 0.5 * np.tanh(k * (2 * level - 1)) / np.tanh(k)
        picture: Array = np.clip(shown, 0, 1) ** np.float32(self.gamma)
        self._collimate(picture)
        return picture.astype(np.float32)

    def _collimate(self, picture: Array) -> None:
        size = picture.shape[0]
        top, bottom, left, right = (round(share * size) for share in self.border)
        picture[:top] = 0
        picture[size - bottom :] = 0
        picture[:, :left] = 0
        picture[:, size - right :] = 0


def _place(scene: Scene, rng: Rng, margin: float) -> tuple[float, float]:
    """A point (u, v) well inside a lung: where much lung is crossed and, by `margin`, away from the wall."""
    inside = (scene.lungs > 0) & (scene.reach < 1 - margin) & (scene.lung_depth > 0.5)
    rows, columns = np.nonzero(inside)
    pick = int(rng.integers(len(rows)))
    return float(scene.u[rows[pick], columns[pick]]), float(scene.v[rows[pick], columns[pick]])


def add_nodule(scene: Scene, rng: Rng) -> Array:
    """One soft sphere in a lung: attenuation (H, W) with it."""
    radius = rng.uniform(0.045, 0.10)
    u0, v0 = _place(scene, rng, 0.15)
    angle = np.arctan2(scene.v - v0, scene.u - u0)
    bend = 1 + 0.06 * np.sin(2 * angle + rng.uniform(0, 6.28)) + 0.04 * np.sin(5 * angle + rng.uniform(0, 6.28))
    distance = np.hypot(scene.u - u0, scene.v - v0) / (radius * bend)
    bump = np.sqrt(np.maximum(1 - distance * distance, 0)) * ramp((1 - distance) * 2.5)
    return scene.attenuation + (rng.uniform(1.6, 2.2) * (0.06 + radius)) * bump


def add_consolidation(scene: Scene, rng: Rng) -> Array:
    """Fluffy filling of airspace in one region, with bronchi left lucent: attenuation (H, W) with it."""
    size = scene.u.shape[0]
    u0, v0 = _place(scene, rng, 0.2)
    wide, high = rng.uniform(0.15, 0.26), rng.uniform(0.14, 0.26)
    same_side = scene.lungs == (1 if u0 < 0 else 2)
    distance = np.hypot((scene.u - u0) / wide, (scene.v - v0) / high)
    noise = sum(
        blur(rng.standard_normal((size, size), dtype=np.float32), size * s) * (size * s) for s in (0.008, 0.02, 0.045)
    )
    fill = ramp(1.25 - distance + 0.22 * noise) * same_side
    fill = gaussian_filter(fill.astype(np.float32), size * 0.006) * (scene.lung_depth > 0)
    hilum = np.array([[0.12 * np.sign(u0), scene.build.apex + 0.72]], dtype=np.float32)
    towards = np.arctan2(v0 - hilum[0, 1], u0 - hilum[0, 0])
    start = np.repeat(hilum, 4, axis=0)
    path = np.concatenate(branching_tree(rng, start, towards + np.linspace(-0.5, 0.5, 4), 0.17, 4, max(16, size // 10)))
    bronchi = np.minimum(gaussian_filter(splat(path, scene.u, scene.v), size * 0.005) * 1.6, 1)
    density = rng.uniform(0.45, 0.7)
    return scene.attenuation + fill * (density * scene.lung_depth * (1 - 0.45 * bronchi) - 0.7 * scene.vessels)


def add_effusion(scene: Scene, rng: Rng) -> Array:
    """Fluid at the base of one lung with a meniscus that climbs the wall: attenuation (H, W) with it."""
    right = rng.random() < 0.5
    build = scene.build
    dome_level = build.base + (0.0 if right else build.left_drop)
    level = dome_level - rng.uniform(-0.06, 0.30)
    climb = rng.uniform(0.14, 0.24)
    reach = np.clip(scene.reach, 0, 1)
    surface = level - climb * reach**5 + 0.10 * (1 - reach)
    depth = scene.v - surface
    fluid = 0.9 * ramp(depth * 9 + 0.25) * (scene.u < 0 if right else scene.u > 0)
    return scene.attenuation + fluid * (0.86 * scene.lung_depth - 0.8 * scene.vessels)


def add_pneumothorax(scene: Scene, rng: Rng) -> Array:
    """Air between lung and chest wall, widest at the tip, bounded by a pleural line: attenuation (H, W) with it."""
    side = 1 if rng.random() < 0.5 else 2
    build = scene.build
    gap, drop = rng.uniform(0.06, 0.16), rng.uniform(0.10, 0.22)
    end = build.apex + rng.uniform(0.7, 1.1)
    taper = np.sqrt(ramp((end - TABLE_AXIS) * 1.6))
    # the collapsed lung's outline: the cage's, lowered by `drop` and drawn in by `gap`, back at the wall below
    lowered = np.interp(TABLE_AXIS - drop * taper, TABLE_AXIS, cage_table(build))
    outline = look_up((lowered - gap * taper).astype(np.float32), scene.v)
    distance = np.abs(scene.u) - outline
    active = look_up((taper > 0.02).astype(np.float32), scene.v) * (scene.lungs == side)
    pocket = ramp(distance * 60) * active
    line = np.maximum(1 - np.abs(distance) / 0.011, 0) * active
    collapsed = scene.attenuation + 0.055 * line
    return collapsed - pocket * (0.9 * scene.vessels + 0.14 * scene.lung_depth)


FINDINGS: dict[str, Callable[[Scene, Rng], Array]] = {
    "nodule": add_nodule,
    "consolidation": add_consolidation,
    "effusion": add_effusion,
    "pneumothorax": add_pneumothorax,
}


PHANTOM_LABELS = ("Nodule", "Consolidation", "Effusion", "Pneumothorax")

# a change below this share of the display range cannot be seen and does not count as finding
_VISIBLE = 2 / 255
_SMALLEST_SIZE = 32

Box = tuple[int, int, int, int, str]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class PhantomSample:
    """One picture and the truth about it."""

    image: Array  #: (1, H, W) float32 in 0…1, bright = dense, row 0 at the top, the patient's left on the right
    mask: Mask  #: (1, H, W) uint8, 1 where the finding changes the picture, all 0 if normal
    #: (1, H, W) uint8, 1 right lung (left half of the picture), 2 left lung, 0 elsewhere; the same with and without a
    #: finding
    lungs: Mask
    label: dict[str, int]  #: 0 or 1 for each of `PHANTOM_LABELS`
    boxes: list[Box]  #: (x, y, width, height, name) in pixels for each connected part of the mask, top left corner
    seed: int  #: the seed that gives this anatomy


class ChestPhantom:
    """Draws frontal chest radiographs from seeds, normal or with one finding.

    A patient is a sum of line integrals (torso minus lungs plus heart, vessels and bones); the beam is attenuated
    exponentially, scattered, blurred, made noisy and shown on a logarithmic scale. It is this project's construction.

    Args:
        size: side of the square picture in pixels, at least 32.
        findings: names of the findings that may be asked for, out of nodule, consolidation, effusion, pneumothorax.

    Raises:
        AfireError: if the size is too small, or a finding is not known.
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
            seed: decides anatomy, exposure and noise, which are the same with and without a finding.
            finding: one of `findings`, or None for a normal picture.

        Raises:
            AfireError: if the finding is not one of this phantom's.
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
            # both pictures use the scatter of the normal patient: a finding must change no pixel far away from it
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
    return (sizes >= 0.1 * sizes.max())[parts].astype(np.uint8)


def _boxes(mask: Mask, name: str) -> list[Box]:
    slices = find_objects(label(mask)[0])
    return [(c.start, r.start, c.stop - c.start, r.stop - r.start, name) for r, c in slices]


def write_phantom_dataset(folder: Path, normal: int = 200, abnormal: int = 40, size: int = 160, seed: int = 0) -> Path:
    """Write a data set of phantoms: 8-bit grey PNG pictures and masks and the data list that names them.

    Seven in ten normal pictures are for training, the others are shared between validation and test. Of the abnormal
    pictures, half are for training (of a classifier; pre-training takes only normal ones), and a quarter each for
    validation and test. Each picture is a patient of its own. The data list is written last, so it never names a
    missing file.

    Args:
        folder: folder to write; created if absent; gets images/, masks/ and datalist.json.
        normal: number of normal pictures, at least 10.
        abnormal: number of abnormal pictures, with the findings in turn.
        size: side of the pictures in pixels.
        seed: seed that decides everything.

    Returns:
        Path of the data list. Its items carry `image`, `label` (one 0 or 1 per label), `group` and, if abnormal,
        `mask` (255 where the finding is) and `boxes` ([x, y, width, height, name]).

    Raises:
        AfireError: if the numbers are out of range.
        DataListError: if the folder holds the data list of another data set.
    """
    if normal < 10 or abnormal < 0 or seed < 0:
        raise AfireError(
            f"normal={normal}, abnormal={abnormal}, seed={seed}: give at least 10 normal pictures and nothing negative."
        )
    folder = Path(folder)
    datalist = folder / "datalist.json"
    _give_way(datalist)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    phantom = ChestPhantom(size)
    # a step larger than any number of pictures keeps the patients of two data sets apart
    first = seed * 1_000_000
    splits: dict[str, list[dict[str, object]]] = {"training": [], "validation": [], "test": []}
    shares = (i / normal for i in range(normal))
    plan: list[tuple[str, str | None]] = [
        ("training" if share < 0.7 else "validation" if share < 0.85 else "test", None) for share in shares
    ]
    plan += [
        (("validation", "test", "training", "training")[i // 4 % 4], phantom.findings[i % 4]) for i in range(abnormal)
    ]
    for number, (split, finding) in enumerate(plan):
        splits[split].append(_write_item(folder, f"p{number + 1:04d}", phantom(first + number, finding)))
    content = {"name": "phantom", "labels": list(PHANTOM_LABELS), **splits}
    write_text(datalist, json.dumps(content, indent=1) + "\n")
    return datalist


def _give_way(datalist: Path) -> None:
    """Remove an earlier phantom's data list: it does not fit while its pictures are rewritten."""
    if not datalist.exists():
        return
    try:
        name = json.loads(datalist.read_text(encoding="utf-8")).get("name")
    except (ValueError, AttributeError):
        name = None
    if name != "phantom":
        raise DataListError(
            f"{datalist}: belongs to another data set (name {name!r}, not 'phantom'); choose another folder."
        )
    datalist.unlink()


def _write_item(folder: Path, group: str, sample: PhantomSample) -> dict[str, object]:
    item: dict[str, object] = {
        "image": f"images/{group}.png",
        "label": [sample.label[name] for name in PHANTOM_LABELS],
        "group": group,
    }
    write_png(folder / f"images/{group}.png", np.round(sample.image[0] * 255).astype(np.uint8))
    if any(sample.label.values()):
        write_png(folder / f"masks/{group}.png", sample.mask[0] * np.uint8(255))
        item |= {"mask": f"masks/{group}.png", "boxes": [list(box) for box in sample.boxes]}
    return item
