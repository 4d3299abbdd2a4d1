"""Names of images: the hash that tells one list from another."""

from __future__ import annotations

import numpy as np

from afire_monai.datalists.paths import ImagePaths, names_hash


def items(*names: str, **extras):
    return [{"image": name, **extras} for name in names]


def test_hash_is_the_same_for_both_forms_of_a_list_and_wherever_it_lies():
    names = ["/data/b.png", "/data/ä.png", "/data/sub/b.png"]
    assert names_hash(ImagePaths(names)) == names_hash(items(*names))
    assert names_hash(items(*names)) == names_hash(items("b.png", "ä.png", "/elsewhere/b.png"))
    paths = ImagePaths(names).take(np.array([2, 1]))
    assert names_hash(paths) == names_hash(items("b.png", "ä.png"))


def test_hash_tells_names_orders_masks_and_targets_apart():
    lists = [
        items("a.png", "b.png"),
        items("b.png", "a.png"),
        items("ab.png", ".png"),
        items("a.png", "b.png", mask="m.png"),
        items("a.png", "b.png", mask="n.png"),
        items("a.png", "b.png", target=np.array([0.0, np.nan])),
        items("a.png", "b.png", target=np.array([0.0, 1.0])),
    ]
    assert len({names_hash(one) for one in lists}) == len(lists)
    assert names_hash(lists[5]) == names_hash(items("/b/a.png", "b.png", target=[0, float("nan")]))
