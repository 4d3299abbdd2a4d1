"""``afire reference`` and ``afire predict``: what normal looks like to a model, and what it says of radiographs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path


def predict(
    *inputs: str,
    model: tuple[str, ...],
    out: str,
    section: str = "test",
    heatmap: str = "auto",
    label: str | None = None,
    restored: bool = False,
    overlays: bool = False,
    batch_size: int = 16,
    workers: int | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> int:
    """Predict radiographs: probabilities, masks, anomaly percentile and maps, as far as there are models for them.

    Exit status: 0 all files scored, 1 some left out (left_out.csv says why), 2 none scored or a wrong command.

    Example: afire predict radiographs --model runs/mine/models --out results

    Example: afire predict list.json --section test --model runs/tuned/models,runs/mine/models --out results

    Args:
        inputs: folders and files (PNG, JPEG, NIfTI, DICOM), or one data list (.json).
        model: model folder, or several with commas between them.
        out: folder to write into.
        section: of the data list.
        heatmap: anomaly, gradcam, rollout, none; auto takes the first that the model can.
        label: which label Grad-CAM is for; each image's most probable finding unless given.
        restored: also write restored pictures.
        overlays: also write the heatmaps in colour over the radiographs, for people.
        batch_size: radiographs computed at once.
        workers: threads that read; the number of cores unless given.
        resume: go on with what an interrupted run left in the folder.
        quiet: no progress bar.
    """
    _keep_headers_out_of_messages()
    from afire_monai.predictions.predict import predict as run
    from afire_monai.predictions.results import KEY, LEFT_OUT

    done = run(
        inputs,
        model,
        out,
        section=section,
        heatmap=heatmap,
        label=label,
        restored=restored,
        overlays=overlays,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        progress=not quiet,
    )
    if done.rank:
        # a process that ends with another status than 0 would make torchrun end the others
        return 0
    earlier = f" ({done.earlier} by an earlier run)" if done.earlier else ""
    print(f"scored:   {done.scored} of {done.total}{earlier}")
    if done.left_out:
        print(f"left out: {len(done.left_out)}; {LEFT_OUT} says why")
        for index, reason in sorted(done.left_out.items())[:5]:
            print(f"  image {index}: {reason}")
    print(f"results:  {out} (which file an index is says {KEY} there; it can identify patients, keep it)")
    return done.status


def reference(
    *,
    model: str,
    datalist: str,
    section: str = "training",
    base_dir: str | None = None,
    parts: tuple[str, ...] | None = None,
    layers: tuple[int, ...] = (),
    window: int = 0,
    pooling: str = "mean",
    most: int = 1000,
    batch_size: int = 16,
    workers: int = 2,
    quiet: bool = False,
) -> int:
    """Teach a model folder what normal radiographs look like, so that predict can rank others among them.

    Example: afire reference --model runs/mine/models --datalist list.json

    Example: afire reference --model runs/mine/models --datalist list.json --parts neighbours,density --window 1

    Args:
        model: model folder; gets reference.safetensors and reference.json.
        datalist: data list; its normal radiographs are taken.
        section: training, validation or test.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.
        parts: what to judge by, with commas between them: tokens, neighbours, residual, difference, prototypes (of
            cells), density, class_density (of the whole image).
        layers: blocks whose tokens are judged besides the encoder's output, with commas between them; 0 is the first.
        window: for neighbours, cells that a normal token may be away from the place of the one it is compared with.
        pooling: of cells into the image's score: mean, top (mean of the highest 5 %) or max.
        most: use at most so many radiographs.
        batch_size: radiographs computed at once.
        workers: threads that read.
        quiet: no progress bar.
    """
    _keep_headers_out_of_messages()
    from afire_monai.predictions.anomaly.build_reference import make_reference

    made = make_reference(
        Path(model),
        datalist,
        section=section,
        base_dir=base_dir,
        parts=parts,
        layers=layers,
        window=window,
        pooling=pooling,
        most=most,
        batch_size=batch_size,
        workers=workers,
        progress=not quiet,
    )
    count = made.reference.count
    print(f"reference: {count} normal radiographs of section {section!r}, judged by {', '.join(made.reference.parts)}")
    print(f"           percentiles come in steps of {100 / count:.2g} %")
    if made.left_out:
        print(f"left out:  {made.left_out} that cannot be used; `afire check` says why")
    if made.seen:
        print("note:      the model was pre-trained on these radiographs; unseen normals can look more unusual to it")
    print(f"written:   {made.path}")
    print(f"next:      afire predict FOLDER --model {model} --out results")
    return 0


def _keep_headers_out_of_messages() -> None:
    """Silence what pydicom says of odd headers: it quotes their values, which can be a patient's."""
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
