"""``afire figures``: what an encoder's tokens and features hold together."""

from __future__ import annotations


def figures(
    *,
    encoder: str,
    datalist: str,
    out: str,
    label: str | None = None,
    section: str = "test",
    images: int = 150,
    clusters: int = 8,
    shift: int | None = None,
    mask_ignore: int | None = 127,
    seed: int = 0,
) -> int:
    """Draw what an encoder has learnt without labels: t-SNE, correspondence, co-segmentation, prototypes, with numbers.

    Example: afire figures --encoder runs/mine/models --datalist mine.json --out figures

    Args:
        encoder: model folder of a run, or an encoder file.
        datalist: list with the images.
        out: folder to write into; figures.html needs nothing else.
        label: finding to colour images by; the one that divides them most evenly unless given.
        section: of the list: training, validation or test.
        images: at most so many, one a patient.
        clusters: of the co-segmentation, 2 to 12.
        shift: cells that the canvas is larger by; what the model was trained with, or a quarter of its grid, unless
            given.
        mask_ignore: mask value of pixels to leave out; none for none.
        seed: of everything random.
    """
    from afire_monai.figures.page import verdicts
    from afire_monai.figures.run import draw_figures
    from afire_monai.figures.study import Settings

    page, numbers = draw_figures(
        encoder, datalist, out, Settings(section, label, images, clusters, shift, mask_ignore, seed)
    )
    for _, words in verdicts(numbers):
        print(words)
    print(f"written: {page}")
    return 0
