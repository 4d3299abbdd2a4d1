from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.localisation import (
    T_IOBB,
    T_IOU,
    LesionCase,
    box_overlaps,
    centre_figures,
    centre_map,
    found_boxes,
    image_figures,
    lesion_pixels,
    prior_figures,
    resize_heatmap,
    summarise,
)

BOX = np.array([[20.0, 10.0, 30.0, 20.0]])  # columns 20…49, rows 10…29
SHAPE = (80, 100)
LESION = lesion_pixels(BOX, SHAPE)


def peak(row, column, shape=SHAPE):
    heatmap = np.zeros(shape)
    heatmap[row, column] = 1
    return heatmap


def case(boxes, group="a", shape=SHAPE):
    boxes = np.array(boxes, dtype=float)
    return LesionCase(shape, boxes, group)


def test_pixels_of_boxes_are_those_whose_centre_lies_inside():
    assert LESION.sum() == 600
    assert LESION[10:30, 20:50].all()
    half = lesion_pixels(np.array([[0.4, 0.6, 2.2, 1.0]]), (4, 4))
    # centres at x 0.5, 1.5, 2.5 lie within 0.4…2.6; of y within 0.6…1.6 only 1.5
    assert np.argwhere(half).tolist() == [[1, 0], [1, 1], [1, 2]]
    outside = lesion_pixels(np.array([[-5.0, -5.0, 7.0, 6.0]]), (4, 4))
    assert np.argwhere(outside).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("row", "column", "hit", "near"),
    [(10, 20, 1, 1), (29, 49, 1, 1), (30, 49, 0, 1), (29, 64, 0, 1), (29, 65, 0, 0), (44, 30, 0, 1), (45, 30, 0, 0)],
)
def test_pointing_game_with_and_without_tolerance(row, column, hit, near):
    figures = image_figures(peak(row, column), LESION, BOX)
    assert (figures.pointing, figures.pointing_tolerant) == (hit, near)


def test_tolerance_is_a_distance_and_not_a_square():
    # 12 rows and 12 columns past the corner: 17 pixels
    assert image_figures(peak(41, 61), LESION, BOX).pointing_tolerant == 0


def test_of_several_maxima_the_share_that_hits_counts():
    heatmap = peak(15, 25) + peak(70, 90) + peak(71, 90) + peak(72, 90)
    assert image_figures(heatmap, LESION, BOX).pointing == 0.25
    assert image_figures(np.full(SHAPE, 0.3), LESION, BOX).pointing == pytest.approx(LESION.mean())


def test_pixel_figures_equal_scikit_learn():
    generator = np.random.default_rng(0)
    cases = [case(BOX, "a"), case([[5, 40, 20, 30], [60, 5, 30, 30]], "b")]
    maps = [np.clip(generator.random(SHAPE) * 0.6 + 0.3 * c.lesion(), 0, 1) ** 2 for c in cases]
    result = summarise([image_figures(m, c.lesion(), c.boxes) for m, c in zip(maps, cases, strict=True)], cases, 20)
    truths, scores = [c.lesion().ravel() for c in cases], [m.ravel() for m in maps]
    for name, function in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        single = [function(t, s) for t, s in zip(truths, scores, strict=True)]
        assert getattr(result, f"pixel_{name}").value == pytest.approx(np.mean(single), abs=2e-3)
        pooled = function(np.concatenate(truths), np.concatenate(scores))
        assert getattr(result, f"pooled_{name}").value == pytest.approx(pooled, abs=2e-3)
    assert result.lesion_share == pytest.approx(np.mean([t.mean() for t in truths]))


def test_faint_heatmaps_keep_their_order():
    heatmap = np.random.default_rng(0).random(SHAPE) * 0.5 + LESION
    loud, faint = (summarise([image_figures(heatmap * f, LESION, BOX)], [case(BOX)], 5) for f in (0.6, 0.01))
    assert faint.pixel_auroc.value == loud.pixel_auroc.value == 1


def test_boxes_of_a_heatmap_are_its_bright_regions():
    heatmap = np.zeros((10, 12))
    heatmap[1:3, 2:5] = 1.0
    heatmap[3, 5] = 0.8  # touches the first by a corner
    heatmap[7:9, 8:11] = 0.3
    assert found_boxes(heatmap, 180).tolist() == [[2, 1, 4, 3]]
    assert found_boxes(heatmap, 60).tolist() == [[2, 1, 4, 3], [8, 7, 3, 2]]
    assert found_boxes(np.ones((4, 4)), 180).shape == (0, 4)


def test_ratios_of_boxes_by_hand():
    found = np.array([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 5.0, 5.0]])
    drawn = np.array([[5.0, 0.0, 20.0, 10.0]])
    ratios = box_overlaps(found, drawn)
    assert ratios.iou_drawn.tolist() == [50 / 250]
    assert ratios.iobb_drawn.tolist() == [0.5]
    assert ratios.iou_found.tolist() == [50 / 250, 0]
    assert ratios.iobb_found.tolist() == [0.5, 0]
    none = box_overlaps(np.zeros((0, 4)), drawn)
    assert none.iou_drawn.tolist() == [0]
    assert len(none.iou_found) == 0


def test_accuracy_and_false_positives_by_hand():
    cases = [case([[0, 0, 20, 10], [50, 50, 10, 10]], "a"), case([[0, 0, 20, 10]], "b")]
    first, second = np.zeros(SHAPE), np.zeros(SHAPE)
    first[0:10, 0:10] = 1  # IoU 0.5 and IoBB 1 with the first drawn box
    first[70:75, 90:95] = 1  # on nothing
    second[0:10, 0:20] = 1  # exact
    maps = zip((first, second), cases, strict=True)
    result = summarise([image_figures(m, c.lesion(), c.boxes) for m, c in maps], cases, 20)
    rows = {(r.cut, r.ratio, r.threshold): r for r in result.rows}
    assert len(rows) == 2 * (len(T_IOU) + len(T_IOBB))
    assert (result.cases, result.boxes) == (2, 3)
    at = rows[180, "IoU", 0.4]
    assert (at.accuracy.value, at.false_positives.value) == (pytest.approx(2 / 3), 0.5)
    at = rows[180, "IoU", 0.5]  # 0.5 is not above 0.5
    assert (at.accuracy.value, at.false_positives.value) == (pytest.approx(1 / 3), 1)
    assert rows[180, "IoBB", 0.9].accuracy.value == pytest.approx(2 / 3)


def test_heatmaps_are_brought_to_the_size_of_the_picture():
    small = np.zeros((8, 10))
    small[1:3, 2:5] = 1  # the box, at a tenth of its size
    figures = image_figures(small, LESION, BOX)
    assert figures.pointing == 1
    assert resize_heatmap(small, SHAPE).shape == SHAPE
    assert figures.overlaps[180].iou_drawn[0] > 0.6  # interpolation takes a little of the rim


def test_the_centre_hits_what_lies_in_the_centre():
    assert np.unravel_index(centre_map((81, 101)).argmax(), (81, 101)) == (40, 50)
    cases = [case([[40, 30, 20, 20]]), case([[0, 0, 10, 10]])]
    assert summarise(centre_figures(cases), cases, 5).pointing.value == 0.5
    assert np.isfinite(centre_map((1, 1))).all()


def test_the_prior_is_the_mean_lesion_of_other_patients_only():
    left, right = [5, 20, 30, 40], [65, 20, 30, 40]
    same = [case([left], "a"), case([left], "b")]
    assert [f.pointing for f in prior_figures(same)] == [1, 1]
    # with its own lesion in the mean, the first would hit half of the time
    apart = [case([left], "a"), case([left], "a"), case([right], "b")]
    assert [f.pointing for f in prior_figures(apart)] == [0, 0, 0]
    with pytest.raises(AfireError, match="second patient"):
        prior_figures(same[:1])


def test_order_of_pictures_changes_nothing():
    generator = np.random.default_rng(3)
    cases = [case([[*generator.integers(0, 40, 2), *generator.integers(5, 30, 2)]], str(i)) for i in range(6)]
    figures = [image_figures(generator.random(SHAPE), c.lesion(), c.boxes) for c in cases]
    order = generator.permutation(6)
    a = summarise(figures, cases, 10)
    b = summarise([figures[i] for i in order], [cases[i] for i in order], 10)
    for name in ("pointing", "pixel_auroc", "pooled_auroc", "pooled_average_precision"):
        assert getattr(a, name).value == pytest.approx(getattr(b, name).value)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(AfireError, match="no pixel of the picture is lesion"):
        image_figures(np.zeros(SHAPE), np.zeros(SHAPE, dtype=bool), BOX)
    with pytest.raises(AfireError, match="finite"):
        image_figures(np.full(SHAPE, np.nan), LESION, BOX)
    with pytest.raises(AfireError, match="at least one"):
        summarise([], [])
