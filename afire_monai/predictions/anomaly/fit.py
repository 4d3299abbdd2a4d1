"""Test whether a reference of normal radiographs fits the radiographs that are judged by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

#: fewer percentiles than this are not judged
MIN_COUNT = 20
#: below this probability of such percentiles, normal radiographs are said not to be those of the reference
LEVEL = 0.01
#: median percentile from which radiographs of any kind are called unlike the reference
HIGH_MEDIAN = 80.0


@dataclass(frozen=True)
class ReferenceFit:
    """How anomaly percentiles are spread.

    For normal radiographs, a median of 50 and a share of 0.05 above 95 are expected.
    """

    count: int
    known_normal: bool
    median: float
    above_95: float
    p_value: float
    fits: bool

    @property
    def words(self) -> str:
        """The meaning of the fit, in a sentence or two."""
        kind = "radiographs that the list calls normal" if self.known_normal else "radiographs"
        seen = (
            f"of {self.count} {kind}, half lie above percentile {self.median:.0f} of the reference's normals and "
            f"{100 * self.above_95:.0f} % above percentile 95"
        )
        if self.known_normal:
            verdict = (
                "50 and 5 % are expected, so the reference fits as far as can be seen"
                if self.fits
                else "50 and 5 % are expected: the reference does not fit them, and percentiles mean little here"
            )
        elif self.fits:
            verdict = "whether the reference fits can only be seen from radiographs that are known to be normal"
        else:
            verdict = "unless most of them are abnormal, the reference does not fit them"
        return f"{seen}; {verdict}" + ("" if self.fits else ". Make one of your own normals with `afire reference`")


def reference_fit(percentiles: ArrayLike, known_normal: bool, reference: int) -> ReferenceFit | None:
    """Judge whether a reference fits, from the anomaly percentiles of radiographs.

    Percentiles of normal radiographs of the reference's population are spread evenly over 0…100, as far as the
    reference's own size allows: both samples count in the Kolmogorov-Smirnov test (its asymptotic distribution).
    Radiographs of any kind are judged by their median alone, as disease moves it too.

    Args:
        percentiles: (n,) in 0…100; those that are not finite are left out.
        known_normal: whether all of them belong to normal radiographs other than those of the reference itself.
        reference: number of normal radiographs in the reference.

    Returns:
        The fit; None for fewer than 20 percentiles.
    """
    values = np.asarray(percentiles, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < MIN_COUNT:
        return None
    distance = stats.kstest(values / 100, "uniform").statistic
    effective = len(values) * reference / (len(values) + reference)
    median, p_value = float(np.median(values)), float(stats.kstwobign.sf(distance * effective**0.5))
    fits = p_value >= LEVEL if known_normal else median < HIGH_MEDIAN
    return ReferenceFit(len(values), known_normal, median, float((values > 95).mean()), p_value, fits)
