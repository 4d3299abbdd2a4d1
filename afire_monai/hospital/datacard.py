"""A one-page summary of a data list: counts, patients, contents; groups of fewer than five are not shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afire_monai.core.files import open_whole, write_object
from afire_monai.pages import elements as pages

FEWEST = 5
FEW, WITHHELD = f"<{FEWEST}", "withheld"
NOT_STATED = "not stated"
Shown = int | str


def age_band(age: float) -> str:
    """Band of ten years of an age in years: ``40-49``, ``90+``; "not stated" below 0."""
    if age < 0:
        return NOT_STATED
    low = int(age // 10) * 10
    return "90+" if low >= 90 else f"{low}-{low + 9}"


def age_in_band(age: float) -> int | None:
    """Middle of the band of an age in years, 95 from 90 on; None below 0."""
    return None if age < 0 else min(int(age // 10) * 10, 90) + 5


def count_groups(values: Iterable[tuple[str, str]]) -> dict[str, dict[str, Shown]]:
    """Patients and images of each value, without telling small groups apart.

    A group of fewer than five patients is shown as "<5", and the number of its images is hidden. If it is the only such
    group, its size could be computed from the total, so the next smallest group is withheld as well.
    """
    patients: dict[str, set[str]] = defaultdict(set)
    images: dict[str, int] = defaultdict(int)
    for value, patient in values:
        patients[value].add(patient)
        images[value] += 1
    sizes = {value: len(found) for value, found in sorted(patients.items())}
    hidden = {value: FEW for value, size in sizes.items() if size < FEWEST}
    if len(hidden) == 1 and len(sizes) > 1:
        rest = [value for value in sizes if value not in hidden]
        hidden[min(rest, key=lambda value: sizes[value])] = WITHHELD
    return {
        value: {"patients": hidden.get(value, size), "images": hidden.get(value, images[value])}
        for value, size in sizes.items()
    }


def describe(
    datalist: Mapping[str, Any], facts: Mapping[str, Mapping[str, str]], histogram: Sequence[float]
) -> dict[str, Any]:
    """Put the figures of a data card together.

    Args:
        datalist: data list with its sections.
        facts: value of each property, such as ``view``, ``sex`` and ``age``, for each image (its ``image`` entry).
        histogram: mean share of pixels in each equal part of 0…1.
    """
    names = [name for name in ("training", "validation", "test") if name in datalist]
    items = [(section, item) for section in names for item in datalist[section]]
    properties: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for _, item in items:
        for name, value in facts[item["image"]].items():
            properties[name].append((value or NOT_STATED, item["group"]))
    patients = len({item["group"] for _, item in items})
    return {
        "images": len(items),
        "patients": patients if patients >= FEWEST else FEW,
        "sections": count_groups((section, item["group"]) for section, item in items),
        "properties": {name: count_groups(values) for name, values in properties.items()},
        "labels": _labels(datalist, names),
        "histogram": [round(float(share), 5) for share in histogram] if patients >= FEWEST else [],
        "smallest_group": FEWEST,
    }


def write_datacard(card: Mapping[str, Any], folder: Path) -> None:
    """Write ``datacard.json`` and ``datacard.html``, which needs no other file.

    Raises AfireError if they cannot be written.
    """
    write_object(folder / "datacard.json", card)
    with open_whole(folder / "datacard.html") as file:
        file.write(_page(card))


def _labels(datalist: Mapping[str, Any], sections: Sequence[str]) -> list[dict[str, Any]]:
    """Known and positive images of each label in each section; groups of fewer than five patients are hidden."""
    rows = []
    for place, label in enumerate(datalist.get("labels", [])):
        for section in sections:
            known = [item for item in datalist[section] if item.get("label") and item["label"][place] is not None]
            positive = [item for item in known if item["label"][place] == 1]
            uncertain = [item for item in known if item["label"][place] == -1]
            rest = [item for item in known if item["label"][place] != 1]
            few, certain = _few(positive) or _few(rest), [item for item in rest if item["label"][place] == 0]
            share = None if few or not known else round(len(positive) / len(known), 4)
            rows.append(
                {"label": label, "section": section, "known": len(known) if not _few(known) else FEW,
                 "positive": FEW if _few(positive) else WITHHELD if few else len(positive), "prevalence": share,
                 "uncertain": FEW if _few(uncertain) else WITHHELD if uncertain and _few(certain) else len(uncertain)}
            )  # fmt: skip
    return rows


def _few(items: Sequence[Mapping[str, Any]]) -> bool:
    return 0 < len({item["group"] for item in items}) < FEWEST


def _page(card: Mapping[str, Any]) -> str:
    parts = [
        pages.paragraph(pages.RESEARCH_ONLY, "note"),
        pages.paragraph(
            f"{card['images']} images of {card['patients']} patients. Groups of fewer than {FEWEST} patients are shown "
            f"as {FEW}; where their size could be told from the rest, the next group is withheld."
        ),
        "<h2>Sections</h2>",
        _group_table("section", card["sections"]),
    ]
    for name, groups in card["properties"].items():
        parts += [f"<h2>By {pages.html.escape(name.replace('_', ' '))}</h2>", _group_table(name, groups)]
    if card["labels"]:
        rows = [
            [r["label"], r["section"], str(r["known"]), str(r["positive"]),
             "" if r["prevalence"] is None else f"{r['prevalence']:.1%}", str(r["uncertain"])]
            for r in card["labels"]
        ]  # fmt: skip
        head = ("label", "section", "images with a known value", "positive", "prevalence", "uncertain")
        parts += ["<h2>Labels</h2>", pages.table(head, rows)]
    if card["histogram"]:
        caption = (
            "Mean share of pixels by grey level, 0 black to 1 white, over all images. Peaks at the ends are borders."
        )
        parts.append(pages.section("Grey levels", _histogram(card["histogram"]), caption))
    return pages.page("Data card", parts)


def _group_table(name: str, groups: Mapping[str, Mapping[str, Shown]]) -> str:
    rows = [[value, str(counts["patients"]), str(counts["images"])] for value, counts in groups.items()]
    return pages.table((name.replace("_", " "), "patients", "images"), rows)


def _histogram(shares: Sequence[float]) -> bytes:
    figure = pages.new_figure(6.4, 2.4)
    axes = figure.add_subplot()
    places = (np.arange(len(shares)) + 0.5) / len(shares)
    axes.bar(places, shares, width=0.9 / len(shares), color=pages.LINE)
    axes.set_xlabel("grey level")
    axes.set_ylabel("share of pixels")
    return pages.png(figure)
