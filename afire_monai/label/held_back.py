"""Which patients are held back from training, so that old and new model can be compared on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from afire_monai.core.errors import AfireError

SHARE = 0.25
LEAST = 5
"""Minimum number of patients held back of a stratum; of one with fewer than twice as many, half are held back."""
TRAINING, HELD_BACK = "training", "validation"


def share_of(count: int) -> int:
    """Return how many of a stratum's patients are held back: a quarter, at least 5, but no more than half."""
    return min(max(round(SHARE * count), LEAST), count // 2)


def split(
    items: Sequence[dict[str, Any]], facts: Sequence[Collection[str]], earlier: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Divide items by patient, each finding apart, rare ones first; patients stay where they were.

    A patient who was used for training is never held back later. A patient who was held back is used for training only
    if training would otherwise lack a finding.

    Args:
        items: each with ``group``, its patient's hash.
        facts: for each item, the facts that both sides need, for example ``"1 Effusion"`` and ``"0 Effusion"``.
        earlier: role of patients in earlier trainings, ``training`` or ``validation``.

    Returns:
        Items to train on, items held back, and the role of each patient, those of earlier trainings included.

    Raises:
        AfireError: if all are of one patient, or all were trained on before.
    """
    strata: dict[str, set[str]] = defaultdict(set)
    for item, found in zip(items, facts, strict=True):
        for fact in found:
            strata[fact].add(str(item["group"]))
    groups = {str(item["group"]) for item in items}
    if len(groups) < 2:
        raise AfireError("all labelled images are of one patient; label images of others too")
    roles = dict(earlier or {})
    ordered = [members for _, members in sorted(strata.items(), key=lambda entry: (len(entry[1]), entry[0]))]
    for members in [*ordered, groups]:
        _deal(sorted(members), roles)
    if all(roles[group] == TRAINING for group in groups):
        if not (new := sorted(groups - set(earlier or {}))):
            raise AfireError(
                "all labelled patients were trained on before, so a new model can be judged on none; label images of "
                "others too"
            )
        roles[new[-1]] = HELD_BACK
    training = [item for item in items if roles[str(item["group"])] == TRAINING]
    return training, [item for item in items if roles[str(item["group"])] == HELD_BACK], roles


def _deal(members: Sequence[str], roles: dict[str, str]) -> None:
    """Hold back as many of a stratum as its share is, and leave at least one to train on."""
    lacking = share_of(len(members)) - sum(roles.get(group) == HELD_BACK for group in members)
    for group in members:
        if group not in roles:
            roles[group] = HELD_BACK if lacking > 0 else TRAINING
            lacking -= 1
    if all(roles[group] == HELD_BACK for group in members):
        roles[members[0]] = TRAINING
