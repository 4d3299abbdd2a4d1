"""A trained model in the form that MONAI's bundle tools expect: ``model.pt``, and the network as a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from monai.bundle import ConfigParser

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.core.files import whole_file, write_text
from afire_monai.models.export import prepare
from afire_monai.models.folder import load_classifier, load_encoder, load_segmenter, model_files_of_kind
from afire_monai.models.restorer import AnomalyNetwork, load_restorer
from afire_monai.networks import Encoder, ViTClassifier, ViTSegmenter

BUNDLE_KINDS = ("classifier", "segmenter", "restorer", "encoder")


def load_for_bundle(folders: Sequence[str | Path], kind: str | None = None) -> nn.Module:
    """Load the network of a bundle, in evaluation mode and ready for export (`prepare`).

    Args:
        folders: model folders; a file that is in several is taken from the first.
        kind: one of `BUNDLE_KINDS`; None for the first of them that is there.

    Raises:
        AfireError: for an unknown kind, or one that the folders do not hold.
        CheckpointError: if a file is missing or damaged.
    """
    files, chosen = model_files_of_kind(folders, kind, BUNDLE_KINDS)
    loaders: dict[str, Callable[[Path], nn.Module]] = {
        "classifier": lambda path: load_classifier(path)[0],
        "segmenter": lambda path: load_segmenter(path)[0],
        "restorer": load_restorer,
        "encoder": load_encoder,
    }
    return prepare(loaders[chosen](files[chosen]))


def network_config(network: nn.Module) -> dict[str, Any]:
    """Return the configuration, in plain values, from which ``ConfigParser`` builds this network, untrained.

    Raises AfireError for any other network.
    """
    if isinstance(network, Encoder):
        return {"_target_": "afire_monai.networks.encoder_from_config", "config": dict(network.config)}
    if isinstance(network, (ViTClassifier, ViTSegmenter)):
        target = {"_target_": f"afire_monai.networks.{type(network).__name__}"}
        return {**target, **network.config, "encoder": network_config(network.encoder)}
    if isinstance(network, AnomalyNetwork):
        decoder = {"_target_": "afire_monai.networks.AnomalyRestorationDecoder", **network.decoder.config}
        return {
            "_target_": "afire_monai.models.restorer.AnomalyNetwork",
            "encoder": network_config(network.encoder),
            "decoder": decoder,
        }
    raise AfireError(f"a bundle holds a {', '.join(BUNDLE_KINDS)}, not a {type(network).__name__}")


def with_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Return the network with the weights of a ``model.pt``, in evaluation mode.

    Raises CheckpointError if the file is missing, or belongs to another network.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"no weights at {path}; `afire bundle copy FOLDER --model MODEL` writes a bundle with weights. Run it from "
            "the bundle's folder, or give --bundle_root"
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit network_def of the config: {str(error)[:400]}") from error
    return network.eval()


def fill_bundle(bundle: str | Path, network: nn.Module, reader: Mapping[str, Any] | None = None) -> None:
    """Put a trained network into a bundle's folder, so that ``monai.bundle.load`` and MONAI's exports find it.

    Written are ``models/model.pt``, ``configs/inference.json``, for a classifier or segmenter ``configs/train.json``
    (which goes on from these weights with the same labels), and input and output in ``configs/metadata.json``. Raises
    AfireError for any other network.
    """
    bundle, config = Path(bundle), network_config(network)
    (bundle / "models").mkdir(exist_ok=True)
    with whole_file(bundle / "models" / "model.pt") as file:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, file)
    configs = bundle / "configs"
    _write(configs / "inference.json", _inference(configs, network, config, reader or {}))
    if isinstance(network, (ViTClassifier, ViTSegmenter)):
        _write(configs / "train.json", _training(configs, network, config))
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    metadata["network_data_format"] = data_format(network)
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    metadata["pred_classes"] = "; ".join(channels.values()) if len(channels) < 20 else "tokens, the class token first"
    _write(configs / "metadata.json", metadata)


def data_format(network: nn.Module) -> dict[str, Any]:
    """Return ``network_data_format`` of the metadata: inputs and outputs."""
    encoder = network if isinstance(network, Encoder) else network.encoder
    assert isinstance(encoder, Encoder)
    size = list(encoder.image_size)
    shape, kind, form, limits = size, "probabilities", "classes", []
    if isinstance(network, ViTClassifier):
        shape, channels = [1], [f"logit of {label}" for label in network.labels]
    elif isinstance(network, ViTSegmenter):
        kind, channels = "image", [f"logit of {label}" for label in network.classes]
    elif isinstance(network, AnomalyNetwork):
        kind, form, limits = "image", "magnitude", [0, 1]
        restored = [f"restored image, channel {number}" for number in range(encoder.in_channels)]
        channels = [*(restored if encoder.in_channels > 1 else ["restored image"]), "anomaly map"]
    else:
        cells = encoder.grid[0] * encoder.grid[1]
        shape, kind, form = [encoder.embed_dim], "series", "latent"
        channels = ["class token", *(f"patch token {cell}" for cell in range(cells))]
    image = _tensor("image", "magnitude", "CR", size, [0, 1], ["radiograph"] * encoder.in_channels)
    return {"inputs": {"image": image}, "outputs": {"pred": _tensor(kind, form, "n/a", shape, limits, channels)}}


def _tensor(
    kind: str, form: str, modality: str, shape: list[int], limits: list[int], channels: list[str]
) -> dict[str, Any]:
    return {
        "type": kind,
        "format": form,
        "modality": modality,
        "num_channels": len(channels),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": limits,
        "is_patch_data": False,
        "channel_def": {str(number): channel for number, channel in enumerate(channels)},
    }


def _inference(
    configs: Path, network: nn.Module, network_def: dict[str, Any], reader: Mapping[str, Any]
) -> dict[str, Any]:
    base: dict[str, Any] = ConfigParser.load_config_file(configs / "inference.yaml")
    over: dict[str, Any] = ConfigParser.load_config_file(configs / "inference_model.yaml")
    if isinstance(network, AnomalyNetwork):  # `inference.yaml` has an inferer and a writer for it
        over = {key: over[key] for key in ("imports", "model_file", "network")}
    base.pop("model_dir")
    return _loadable({**base, **over, "reader": dict(reader), "network_def": network_def})


def _training(configs: Path, network: ViTClassifier | ViTSegmenter, network_def: dict[str, Any]) -> dict[str, Any]:
    task = "classification" if isinstance(network, ViTClassifier) else "segmentation"
    config: dict[str, Any] = ConfigParser.load_config_file(configs / f"finetune_{task}.yaml")
    encoder = network_def.pop("encoder")
    config["imports"].append("$from afire_monai.models import bundle_model")
    config["model_file"] = "$@bundle_root + '/models/model.pt'"
    config |= {"encoder": encoder, "network_def": {**network_def, "encoder": "@encoder"}}
    config["method_def"]["network"] = "$bundle_model.with_weights(@network_def, @model_file)"
    # the new model's description says that it does not start at random weights
    config["run"] = [step.replace("facts(@init,", "facts('bundle',") for step in config["run"]]
    for setting in ("init", "encoder_preset", "image_size", "patch_size"):  # the network fixes them
        config.pop(setting)
    if isinstance(network, ViTClassifier):
        config |= {"labels": network.labels, "head_first": False}  # it has a head already
    return _loadable(config)


def _loadable(config: dict[str, Any]) -> dict[str, Any]:
    """Move the steps of ``initialize`` to the start of ``run``: a bundle that is only loaded makes no folder."""
    return {**config, "initialize": [], "run": [*config["initialize"], *config["run"]]}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=4) + "\n")
