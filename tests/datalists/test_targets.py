from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists.targets import positive_weights, target_matrix

LABELS = ["Normal", "Edema", "Mass"]
ITEMS: list[dict[str, Any]] = [{"label": [1, 0, 0]}, {"label": [0, -1, None]}, {"image": "x"}, {"label": None}]
NAN = float("nan")


@pytest.mark.parametrize(("policy", "value"), [("ignore", NAN), ("zeros", 0.0), ("ones", 1.0)])
def test_policy_applies_to_uncertain_alone_and_unknown_is_always_left_out(policy: str, value: float) -> None:
    targets = target_matrix(ITEMS, LABELS, policy)  # type: ignore[arg-type]
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, [[1, 0, 0], [0, value, NAN], [NAN] * 3, [NAN] * 3])


def test_selected_labels_come_in_the_order_asked_for() -> None:
    np.testing.assert_array_equal(
        target_matrix(ITEMS[:2], LABELS, "ones", select=["Mass", "Normal"]), [[0, 1], [NAN, 0]]
    )


def test_no_items_give_an_empty_matrix() -> None:
    assert target_matrix([], LABELS).shape == (0, 3)


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (ITEMS, {"select": ["Edma"]}, "no label 'Edma'; the nearest are Edema. Its labels are Normal, Edema, Mass"),
        (ITEMS, {"select": []}, "at least one"),
        (ITEMS, {"select": ["Mass", "Mass"]}, "different names"),
        (ITEMS, {"select": "Mass"}, "different names"),
        (ITEMS, {"uncertain": "one"}, "uncertain is 'one'; one of ignore, zeros, ones"),
        ([{"label": [1, 0]}], {}, "item 0: its label has 2 values"),
        ([{"label": "Mass"}], {}, "item 0"),
        ([{"label": 1}], {}, "item 0: its label has int"),
        ([{"label": [1, 0, 0]}, {"label": [1, 0, 2]}], {}, "item 1: 2 among its labels"),
        ([{"label": [1, 0, "1"]}], {}, "item 0: '1' among"),
        ([{"label": [1, 0, 0.5]}], {}, "item 0: 0.5 among"),
        ([{"label": [True, 0, 0]}], {}, "item 0: True among"),
    ],
)
def test_wrong_labels_are_refused_with_what_was_seen(items, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataListError, match=message):
        target_matrix(items, LABELS, **options)


def test_positive_weights_are_negatives_over_positives_within_bounds() -> None:
    column = {
        "three to one": [1, 0, 0, 0, NAN] + [NAN] * 45,
        "all present": [1] * 50,
        "none present": [0] * 50,
        "unknown": [NAN] * 50,
        "rare": [1] + [0] * 49,
        "common": [0] + [1] * 49,
    }
    weights = positive_weights(np.array(list(column.values())).T)
    assert dict(zip(column, weights, strict=True)) == pytest.approx(
        {"three to one": 3, "all present": 1, "none present": 1, "unknown": 1, "rare": 20, "common": 1 / 20}
    )
