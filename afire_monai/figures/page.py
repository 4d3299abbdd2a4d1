"""The page of representation figures: measurements in tables and plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afire_monai import __version__
from afire_monai.evaluation.page_tables import DASH, interval
from afire_monai.figures.views import OURS, PIXELS, RANDOM
from afire_monai.pages.elements import RESEARCH_ONLY, page, paragraph, section, table

MEAN_MASK, CEILING = "mean mask", "the masks themselves, by cells"
CAPTIONS = {
    "correspondence": (
        "The same anatomy in other patients",
        "Left: the asked cell of patient A (yellow). Right: how like it each cell of four other patients is (bright: "
        "like), the best match (blue) and the cell of the same anatomy (white, dashed). The pictures of B to E are "
        "moved against that of A by a few cells, so that the place in the picture gives no answer away.",
    ),
    "segments": (
        "Co-segmentation without labels",
        "Tokens of all images clustered together (k-means, no labels); one colour is one cluster. White lines are "
        "masks that the clusters have not seen, where there are some. Clusters with the same borders in every picture "
        "follow the place, as the mean mask in the table does.",
    ),
    "tsne_cells": (
        "Tokens by cell",
        "t-SNE of tokens of many patients, coloured by the place of their cell. Position is part of each token, so "
        "clusters of one colour are no proof of anatomy: see the table of moved pictures.",
    ),
    "tsne_landmarks": (
        "Tokens by landmark of the lungs",
        "t-SNE of the tokens that show ten points of the lungs, found in masks. Each picture is shown as one of two "
        "crops, some cells apart, so that the place in the picture does not tell the landmark.",
    ),
    "tsne_disease": (
        "Images by disease",
        "t-SNE of images (mean of their tokens; raw pixels: the reduced picture). Distances between "
        "far groups in t-SNE mean little; the table says what is there.",
    ),
    "atlas": (
        "Prototype atlas",
        "From left: mean of the images; the strongest dimension of each cell's prototype; the mean of all patches "
        "whose token chose that cell's prototype (like the mean picture where prototypes stand for anatomy; orange: "
        "chosen by none); how many tokens of a cell chose their own.",
    ),
}


def page_text(numbers: Mapping[str, Any], drawn: Mapping[str, bytes], notes: Sequence[str]) -> str:
    """Put the page together."""
    named = numbers["datalist"]
    parts = [
        paragraph(f"afire-monai {__version__}. {RESEARCH_ONLY}", "small"),
        paragraph(
            f"{numbers['images']} images of as many patients, section {numbers['section']} of data list "
            f"{named['name']} (SHA-256 {named['sha256'][:16]}…). Intervals are 95 %, by 1,000 draws of patients."
        ),
        *(paragraph(text, kind) for kind, text in verdicts(numbers)),
        *(paragraph(text, "note") for text in notes),
        "<h2>Same cell in other patients</h2>",
        retrieval_table(numbers["cells"]),
        paragraph(
            "For each token, the most like token of any other patient. Aligned: whole pictures; a network that knows "
            "nothing but the place scores high. Moved: two crops of a larger picture that are "
            f"{numbers['canvas_shift']} cells apart each way; only who sees the anatomy finds it, who goes by place is "
            "counted under “same place”. Distance: of the best match in each other patient from the right cell.",
            "small",
        ),
        _part("correspondence", drawn),
        _part("segments", drawn),
        dice_table(numbers.get("segmentation")),
        _part("tsne_cells", drawn),
        cohesion_table(numbers["cells"]),
        _part("tsne_landmarks", drawn) if "landmarks" in numbers else "",
        landmark_table(numbers.get("landmarks")),
        _part("tsne_disease", drawn),
        disease_table(numbers.get("disease")),
        _part("atlas", drawn),
        paragraph(f"{numbers['atlas']['own_cell']:.1%} of tokens choose the prototype of their own cell.")
        if "atlas" in numbers
        else "",
    ]
    return page(f"Representation: {named['name']}", parts)


def verdicts(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """State each result in a sentence, as (``good``, ``bad`` or ``note``, text)."""
    moved = {name: view["moved"]["nearby"] for name, view in numbers["cells"].items()}
    ours, rest = moved[OURS], max(moved[RANDOM]["high"], moved[PIXELS]["high"], moved[OURS]["chance"])
    words = (
        f"within one cell for {interval(ours)} of tokens in moved pictures (random encoder "
        f"{moved[RANDOM]['value']:.3f}, raw pixels {moved[PIXELS]['value']:.3f}, chance {ours['chance']:.3f})."
    )
    if ours["low"] > rest:
        messages = [("good", f"Tokens know anatomy across patients: the same place of the body is found {words}")]
    else:
        messages = [("bad", f"That tokens know anatomy across patients is not shown: it is found {words}")]
    exact = {name: view["moved"]["same_cell"] for name, view in numbers["cells"].items()}
    if exact[OURS]["low"] <= max(exact[RANDOM]["high"], exact[PIXELS]["high"]):
        others = f"random encoder {exact[RANDOM]['value']:.3f}, raw pixels {exact[PIXELS]['value']:.3f}"
        messages.append(
            (
                "note",
                f"The very cell is not found more often than without training: {interval(exact[OURS])} ({others}).",
            )
        )
    segmentation = numbers.get("segmentation")
    if segmentation:
        scores = segmentation["dice"]
        better = scores[OURS]["low"] > max(scores[name]["high"] for name in scores if name not in (OURS, CEILING))
        messages.append(
            (
                "good" if better else "note",
                f"Clusters chosen on other images make up the mask with Dice {interval(scores[OURS])}; the mean mask, "
                f"without looking, has {scores[MEAN_MASK]['value']:.3f}.",
            )
        )
    return messages


def retrieval_table(cells: Mapping[str, Any]) -> str:
    """Same-cell retrieval, aligned and moved, for each view, with chance."""
    head = [
        "",
        "aligned: same cell",
        "moved: same cell",
        "moved: within one cell",
        "moved: same place",
        "moved: distance",
    ]
    rows = [
        [
            name,
            interval(view["aligned"]["same_cell"]),
            interval(view["moved"]["same_cell"]),
            interval(view["moved"]["nearby"]),
            interval(view["moved"]["same_place"]),
            f"{interval(view['moved']['distance'], 2)} cells",
        ]
        for name, view in cells.items()
    ]
    view = cells[OURS]
    chance = [
        f"{view[form][key]['chance']:.3f}"
        for form, key in (("aligned", "same_cell"), ("moved", "same_cell"), ("moved", "nearby"))
    ]
    return table(head, [*rows, ["chance", *chance, "", f"{view['moved']['distance']['chance']:.2f} cells"]])


def cohesion_table(cells: Mapping[str, Any]) -> str:
    """Silhouette and distance ratio of tokens by cell."""
    return table(
        ["tokens by cell", "silhouette (higher is tighter)", "within / between distance (lower is tighter)"],
        [[name, _number(view["silhouette"]), _number(view["distance_ratio"])] for name, view in cells.items()],
    )


def landmark_table(landmarks: Mapping[str, Any] | None) -> str:
    """Retrieval, silhouette and distance ratio of tokens by landmark."""
    if landmarks is None:
        return ""
    head = [f"tokens by landmark ({landmarks['images']} images)", "same landmark in other patients", "silhouette"]
    rows = [
        [name, interval(view["found"]), _number(view["silhouette"]), _number(view["distance_ratio"])]
        for name, view in landmarks["views"].items()
    ]
    chance = landmarks["views"][OURS]["found"]["chance"]
    text = "The most like landmark token among the patients whose pictures are shown as the other crop."
    table_text = table([*head, "within / between distance"], [*rows, ["chance", f"{chance:.3f}", "", ""]])
    return table_text + paragraph(text, "small")


def disease_table(disease: Mapping[str, Any] | None) -> str:
    """Silhouette and distance ratio of images by a label."""
    if disease is None:
        return ""
    head = [f"images by {disease['label']} ({disease['present']} with, {disease['absent']} without)", "silhouette"]
    return table(
        [*head, "within / between distance"],
        [[n, _number(v["silhouette"]), _number(v["distance_ratio"])] for n, v in disease["views"].items()],
    )


def dice_table(segmentation: Mapping[str, Any] | None) -> str:
    """Dice of the best union of clusters."""
    if segmentation is None:
        return ""
    text = (
        f"Clusters are of all images, without masks. The union of clusters with the best mean Dice was chosen on "
        f"{segmentation['chosen_on']} images and judged on {segmentation['judged_on']} others, at the size that the "
        "encoder sees. Mean mask: pixels that most masks of the first images hold, for everyone. The masks by cells: "
        "drawn from how much of each cell they fill, to show what so coarse a grid can give."
    )
    rows = [[name, interval(score)] for name, score in segmentation["dice"].items()]
    return table(["mask from", "Dice"], rows) + paragraph(text, "small")


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _part(name: str, drawn: Mapping[str, bytes]) -> str:
    title, caption = CAPTIONS[name]
    return section(title, drawn.get(name), caption)
