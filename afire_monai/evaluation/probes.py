"""Probes: measure how well a label can be predicted from frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks import Encoder

Pooling = Literal["mean", "class", "class_mean", "regions", "summary"]


@torch.no_grad()
def extract_features(
    encoder: Encoder, images: Tensor, pooling: Pooling = "mean", batch_size: int = 64
) -> NDArray[np.float32]:
    """Run a frozen encoder over images, on the encoder's device.

    Args:
        encoder: images (B, C, H, W) in 0…1 to tokens (B, 1 + L, D).
        images: (n, C, H, W) in 0…1, or (n, 1, H, W) for an encoder of several channels.
        pooling: ``mean`` of the patch tokens; ``class`` token (AFiRe does not train it); ``class_mean``, the class
            and then the mean, side by side; ``regions``, the patch tokens averaged over a 4 x 4 partition of the
            picture and put side by side; ``summary``, the encoder's own summary (`Encoder.summary`).
        batch_size: images at a time.

    Returns:
        (n, D), (n, 2 D) for ``class_mean``, (n, 16 D) for ``regions``, or (n, summary_dim).

    Raises:
        AfireError: for an unknown pooling.
    """
    encoder.eval()
    batches = (some.to(encoder.mean.device, torch.float32) for some in images.split(batch_size))
    filled = (some.expand(-1, encoder.in_channels, -1, -1) for some in batches)
    return np.concatenate([_pooled(encoder, some, pooling).numpy() for some in filled])


def _pooled(encoder: Encoder, images: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "summary":
        return encoder.summary(images).float().cpu()
    tokens = encoder(images).float().cpu()
    if pooling == "mean":
        return tokens[:, 1:].mean(1)
    if pooling == "class":
        return tokens[:, 0]
    if pooling == "class_mean":
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    if pooling == "regions":
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, encoder.grid)
        return torch.nn.functional.adaptive_avg_pool2d(grid, 4).flatten(1)
    raise AfireError(f"pooling must be mean, class, class_mean, regions or summary, got {pooling!r}")


def raw_pixels(images: Tensor, side: int = 32) -> NDArray[np.float32]:
    """Return images (n, C, H, W) reduced to side x side pixels as features (n, C·side²): the floor for any encoder."""
    return torch.nn.functional.adaptive_avg_pool2d(images, side).flatten(1).numpy()


def knn_probe(train: NDArray, labels: NDArray, test: NDArray, k: int = 20) -> NDArray[np.float64]:
    """Score test features by their nearest training features; return (m,) share of positive votes in 0…1, or NaN.

    Features are standardised with the training set's mean and deviation, then compared by cosine; the k nearest vote
    with weight exp(similarity / 0.07), as is usual for self-supervised encoders (Wu et al., CVPR 2018).

    Args:
        train: (n, d).
        labels: (n,) 0 or 1.
        test: (m, d).
        k: number of neighbours, at most n.
    """
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        return np.full(len(test), np.nan)
    scaler = StandardScaler().fit(train)
    model = KNeighborsClassifier(min(k, len(train)), weights=_vote, metric="cosine")
    model.fit(scaler.transform(train), labels)
    return np.asarray(model.predict_proba(scaler.transform(test)) @ model.classes_.astype(np.float64))


def _vote(distances: NDArray) -> NDArray[np.float64]:
    return np.exp((1 - distances) / 0.07)


def fit_logistic(
    head: nn.Linear,
    features: Tensor,
    target: NDArray,
    mean: Tensor,
    deviation: Tensor,
    strength: float,
    positive_weight: Sequence[float] | None = None,
) -> list[int]:
    """Fit a logistic regression for each label to standardised features, and write it into a head for them as they are.

    Args:
        head: layer that gets weight and bias, d columns to the labels' logits.
        features: (n, d).
        target: (n, labels) 1, 0 or NaN where not known.
        mean: (d,) subtracted first.
        deviation: (d,) above 0, divided by then.
        strength: C of the regression: the smaller, the more weights are penalised.
        positive_weight: (labels,) weight of a positive of each label, as in `MaskedBCELoss`. None for 1.

    Returns:
        Places of the labels whose known values are all the same; their rows of the head are left as they were.
    """
    rows = ((features.double() - mean) / deviation).cpu().numpy()
    alike = []
    for number, values in enumerate(target.T):
        known = ~np.isnan(values)
        if len(np.unique(values[known])) < 2:
            alike.append(number)
            continue
        balance = {1: float(positive_weight[number])} if positive_weight is not None else None
        fitted = LogisticRegression(C=strength, max_iter=1000, class_weight=balance).fit(rows[known], values[known])
        weight = torch.from_numpy(fitted.coef_[0]).to(deviation) / deviation
        with torch.no_grad():
            head.weight[number] = weight
            head.bias[number] = float(fitted.intercept_[0]) - float(weight @ mean)
    return alike


def linear_probe(train: NDArray, labels: NDArray, test: NDArray, groups: NDArray, seed: int = 0) -> NDArray[np.float64]:
    """Fit a logistic regression on frozen features; its strength is chosen inside the training set, by patient.

    Five folds choose, or as many as there are patients of the rarer label.

    Arguments are as for `knn_probe`; ``groups`` (n,) are the patients of the training cases.

    Returns:
        (m,) decision values, higher means positive.

    Raises:
        AfireError: if a label has fewer than two patients.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    labels = np.asarray(labels)
    patients = min(len(set(np.asarray(groups)[labels == kind])) for kind in (0, 1))
    if patients < 2:
        raise AfireError(f"{patients} patients have the rarer label; a linear probe needs two")
    folds = StratifiedGroupKFold(min(5, patients), shuffle=True, random_state=seed)
    strengths = {"logisticregression__C": np.logspace(-5, 1, 7)}
    search = GridSearchCV(model, strengths, cv=folds, scoring="roc_auc")
    search.fit(train, labels, groups=groups)
    return np.asarray(search.decision_function(test), dtype=np.float64)
