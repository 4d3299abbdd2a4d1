"""The JSON files and the model card for exported weights (`afire_monai.models.layouts`)."""

from __future__ import annotations

import json
from typing import Any

from afire_monai import __version__
from afire_monai.models.export import Exportable
from afire_monai.networks import ViTClassifier, ViTEncoder


def timm_files(encoder: ViTEncoder, classifier: ViTClassifier | None) -> dict[str, str]:
    """Return the texts, by file name, that stand beside the weights for timm."""
    config = encoder.config
    labels = classifier.labels if classifier is not None else []
    pooling = "avg" if classifier is not None and classifier.pooling == "mean" else "token"
    model = {
        "architecture": "vit_base_patch16_224",
        "num_classes": len(labels),
        "num_features": encoder.embed_dim,
        "global_pool": pooling,
        "model_args": {
            "img_size": config["image_size"],
            "patch_size": encoder.patch_size,
            "in_chans": encoder.in_channels,
            "embed_dim": encoder.embed_dim,
            "depth": encoder.depth,
            "num_heads": config["num_heads"],
            "mlp_ratio": config["mlp_ratio"],
            "global_pool": pooling,
            "fc_norm": False,  # the norm comes before the pooling, as here
        },
        "pretrained_cfg": {
            "input_size": [encoder.in_channels, *encoder.image_size],
            "fixed_input_size": True,
            "mean": config["mean"],
            "std": config["std"],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": len(labels),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **({"label_names": labels} if classifier is not None else {}),
        },
    }
    return {"config.json": json.dumps(model, indent=2) + "\n"}


def hf_files(exportable: Exportable, encoder: ViTEncoder, classifier: ViTClassifier | None) -> dict[str, str]:
    """Return the texts, by file name, that stand beside the weights for transformers; one is the model card."""
    config = encoder.config
    architecture = "ViTModel" if classifier is None else "ViTForImageClassification"
    model: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "vit",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": config["num_heads"],
        "intermediate_size": int(encoder.embed_dim * config["mlp_ratio"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config["layer_norm_eps"],
        "qkv_bias": True,
        "image_size": config["image_size"],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.in_channels,
        "dtype": "float32",
    }
    if classifier is not None:
        model["problem_type"] = "multi_label_classification"
        model["id2label"] = {str(place): label for place, label in enumerate(classifier.labels)}
        model["label2id"] = {label: place for place, label in enumerate(classifier.labels)}
    height, width = encoder.image_size
    reading = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": config["mean"],
        "image_std": config["std"],
    }
    files = {"config.json": model, "preprocessor_config.json": reading}
    card = _CARD.format(
        kind=exportable.kind,
        task="image-classification" if classifier is not None else "image-feature-extraction",
        architecture=architecture,
        size=f"{height} x {width}",
        channels=encoder.in_channels,
        width=encoder.embed_dim,
        depth=encoder.depth,
        version=__version__,
        facts="\n".join(f"- `{name}`: {json.dumps(value)}" for name, value in exportable.description.items()),
    )
    return {**{name: json.dumps(value, indent=2) + "\n" for name, value in files.items()}, "README.md": card}


_CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [radiology, chest-x-ray, self-supervised, medical]
---

# Chest radiograph {kind}

A vision transformer of {depth} blocks and width {width} for frontal chest radiographs of {size} pixels and
{channels} channel(s), written by afire-monai {version} as `{architecture}`.

```python
from transformers import {architecture}
model = {architecture}.from_pretrained("FOLDER")
```

Images are float32 in 0…1, bright = dense, normalised by the mean and standard deviation in `preprocessor_config.json`.

## Intended use
Research on chest radiographs. Not a medical device, not for diagnosis. It may fail on another population, age
group or scanner than that of its training data: test it there before you rely on anything it gives.

## Facts
{facts}
"""
