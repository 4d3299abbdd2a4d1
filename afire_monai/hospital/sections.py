"""Divide images into training, validation and test so that no patient is in two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from afire_monai.core.errors import DataListError
from afire_monai.datalists.splits import split_by_group

TRAINING, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class SplitRule:
    """How to split."""

    by: str = "shares"  #: "shares", "date" or "site"
    shares: tuple[float, ...] = (0.7, 0.1, 0.2)  #: shares of training, validation and test
    cuts: tuple[str, ...] = ()  #: with "date": YYYYMMDD of the first day of validation (if there are two) and of test
    seed: int = 0  #: seed of the random draws

    @classmethod
    def parse(cls, split_by: str | None, shares: Sequence[float], seed: int) -> SplitRule:
        """Build a rule from the words of a command line: None, ``date:YYYY-MM-DD[,YYYY-MM-DD]`` or ``site``.

        Raises DataListError for other words, or if the shares are not three numbers that sum to 1.
        """
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise DataListError(
                f"split is {','.join(f'{s:g}' for s in shares)}; three shares from 0 to 1 that sum to 1 are expected: "
                "training, validation, test"
            )
        plain = tuple(float(share) for share in shares)
        if split_by is None:
            return cls("shares", plain, (), seed)
        kind, _, rest = split_by.partition(":")
        if split_by == "site":
            return cls("site", plain, (), seed)
        if kind != "date":
            raise DataListError(f"split-by is {split_by!r}; date:YYYY-MM-DD,YYYY-MM-DD or site is expected")
        try:
            cuts = tuple(date.fromisoformat(text.strip()).strftime("%Y%m%d") for text in rest.split(","))
        except ValueError:
            cuts = ()
        if len(cuts) not in (1, 2) or list(cuts) != sorted(set(cuts)):
            raise DataListError(
                f"split-by is {split_by!r}; date:FIRST or date:FIRST,SECOND with days as YYYY-MM-DD, the earlier one "
                "first, is expected"
            )
        return cls("date", plain, cuts, seed)

    def missing(self, day: str, site: str) -> bool:
        """Whether an image lacks the value that this rule splits by."""
        return (self.by == "date" and not day) or (self.by == "site" and not site)


def assign_sections(
    rule: SplitRule, groups: Sequence[str], strata: Sequence[str], days: Sequence[str], sites: Sequence[str]
) -> list[int]:
    """Return the section of each of n images; all images of a patient are in one.

    - shares: patients are divided at random, stratified and seeded (`split_by_group`).
    - date: a patient's *latest* image decides. So no training image is of the first day of validation or later, and
      some images of later sections are older.
    - site: the site with most images is for training and validation (by their shares), all others are the test set. A
      patient with images from both is in the test set, so no image of another site is used for training.

    Patients, strata, days (YYYYMMDD) and hashes of sites are given for each image. Raises DataListError if nothing is
    left for training, or there is only one site.
    """
    if rule.by == "shares":
        return [int(part) for part in split_by_group(groups, strata, rule.shares, rule.seed)]
    if rule.by == "date":
        parts = (TEST,) if len(rule.cuts) == 1 else (VALIDATION, TEST)
        latest: dict[str, str] = {}  # day of each patient's last image
        for group, day in zip(groups, days, strict=True):
            latest[group] = max(day, latest.get(group, day))
        cuts = list(zip(rule.cuts, parts, strict=True))
        sections = [max((part for cut, part in cuts if latest[group] >= cut), default=TRAINING) for group in groups]
    else:
        sections = _by_site(rule, groups, strata, sites)
    if sections and TRAINING not in sections:
        raise DataListError("no patient is left for training; split by other dates, or by shares")
    return sections


def _by_site(rule: SplitRule, groups: Sequence[str], strata: Sequence[str], sites: Sequence[str]) -> list[int]:
    counts = Counter(sites)
    if len(counts) < 2:
        raise DataListError(f"{len(counts)} site in the files; two or more are needed to split by site")
    home = min(counts, key=lambda site: (-counts[site], site))
    outside = {group for group, site in zip(groups, sites, strict=True) if site != home}
    inside = [place for place, group in enumerate(groups) if group not in outside]
    total = rule.shares[TRAINING] + rule.shares[VALIDATION]
    shares = (rule.shares[TRAINING] / total, rule.shares[VALIDATION] / total) if total > 0 else (1.0, 0.0)
    parts = split_by_group([groups[i] for i in inside], [strata[i] for i in inside], shares, rule.seed)
    sections = [TEST] * len(groups)
    for place, part in zip(inside, parts, strict=True):
        sections[place] = int(part)
    return sections
