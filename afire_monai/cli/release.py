"""``afire import-release``: the authors' published weights as files of this package."""

from __future__ import annotations

from typing import Any


def import_release(
    path: str,
    *,
    output: str,
    channels: str = "keep",
    part: str = "teacher",
    strict: bool = True,
    decoder_heads: int | None = None,
) -> int:
    """Turn a released AFiRe checkpoint (AFiRe_ViT-B.pth) into encoder.safetensors and its description.

    Example: afire import-release AFiRe_ViT-B.pth --output released --channels fold

    Args:
        path: the released file; no code that may be in it is run.
        output: folder to write into.
        channels: "keep" the three input channels, or "fold" them to one for grey images.
        part: "teacher" (what the paper fine-tunes) or "student".
        strict: with False, go on although something has no place here or is missing.
        decoder_heads: attention heads of the restoration decoder, which the weights do not tell; what the file names,
            or 16 as released, unless given.
    """
    from afire_monai.models.released import import_released

    options: dict[str, Any] = {"channels": channels, "part": part, "strict": strict, "decoder_heads": decoder_heads}
    made = import_released(path, output, **options)
    for title, names in (
        ("without a place here", made.unplaced),
        ("missing, left at random", made.missing),
        ("assumed", made.assumed),
    ):
        if names:
            print(f"{title}: {', '.join(names)}")
    for file in made.files:
        print(f"written: {file}")
    print(f"next:    python -c \"import afire_monai; print(afire_monai.load_encoder('{output}').config)\"")
    return 0
