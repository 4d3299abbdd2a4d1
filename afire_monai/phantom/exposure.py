"""From line integrals to a picture: beam, scatter, detector blur, quantum noise and display of the chest phantom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afire_monai.phantom.shapes import Array, Rng, blur


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
        # most scatter is born where much light enters the patient; outside the body none is
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
