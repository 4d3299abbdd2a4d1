"""Whether a reference fits, judged by the spread of percentiles."""

from __future__ import annotations

import numpy as np
import pytest

from afire_monai.predictions.anomaly.fit import reference_fit


def test_evenly_spread_percentiles_of_normals_fit():
    fit = reference_fit(np.linspace(0, 100, 101), known_normal=True, reference=200)
    assert fit is not None
    assert (fit.count, fit.median, fit.fits) == (101, 50, True)
    assert fit.above_95 == pytest.approx(5 / 101)
    assert "half lie above percentile 50" in fit.words
    assert "afire reference" not in fit.words


def test_normals_that_all_look_unusual_do_not_fit_nor_do_those_that_all_look_usual():
    for percentiles in (np.linspace(80, 100, 40), np.linspace(0, 20, 40)):
        fit = reference_fit(percentiles, known_normal=True, reference=200)
        assert fit is not None
        assert not fit.fits
        assert "does not fit them, and percentiles mean little" in fit.words
        assert "afire reference" in fit.words


@pytest.mark.parametrize(("reference", "count"), [(40, 500), (200, 50), (100, 100)])
def test_false_alarms_are_as_rare_as_the_level_says_whatever_the_sizes(reference, count):
    generator = np.random.default_rng(0)

    def alarm() -> bool:
        normals, scores = np.sort(generator.normal(size=reference)), generator.normal(size=count)
        fit = reference_fit(100 * np.searchsorted(normals, scores) / reference, known_normal=True, reference=reference)
        assert fit is not None
        return not fit.fits

    assert 0.002 < np.mean([alarm() for _ in range(1500)]) < 0.02


def test_radiographs_of_any_kind_are_judged_by_their_median():
    mixed = reference_fit([*np.linspace(0, 100, 20), *[99.0] * 5], known_normal=False, reference=200)
    unlike = reference_fit(np.linspace(70, 100, 30), known_normal=False, reference=200)
    assert mixed is not None
    assert unlike is not None
    assert (mixed.fits, unlike.fits) == (True, False)
    assert "can only be seen from radiographs that are known to be normal" in mixed.words
    assert "unless most of them are abnormal" in unlike.words


def test_few_or_missing_percentiles_say_nothing():
    assert reference_fit([50.0] * 19, known_normal=True, reference=200) is None
    assert reference_fit([50.0] * 19 + [np.nan] * 10, known_normal=True, reference=200) is None
