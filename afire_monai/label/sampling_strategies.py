"""Which image to label next: the most anomalous, the most uncertain, or the one least like those labelled."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.credentials import DicomWebError
from afire_monai.label.images import file_of
from afire_monai.label.inference_service import ModelShelf
from afire_monai.label.label_files import Store, has_label
from afire_monai.label.messages import NotFoundError
from afire_monai.predictions.reading import Radiograph, ahead, read_radiograph
from afire_monai.radiographs.decode import is_dicom
from afire_monai.radiographs.header import read_header
from afire_monai.radiographs.judgement import COLOUR, LATERAL, NOT_HUMAN, OBLIQUE, SCREEN, SEVERAL_FRAMES, judge

logger = logging.getLogger(__name__)

STRATEGIES = {
    "most_anomalous": "Most unlike normal radiographs first",
    "most_uncertain": "First where the model knows least (entropy of its probabilities)",
    "most_different": "First what is least like all that is labelled (farthest in the encoder's features)",
    "random": "Any that has no label yet",
}
BATCH = 8
AGAIN_AFTER = 3600.0
"""Seconds before an image that was offered and not labelled is offered again, if there are others."""


_NOT_OFFERED = (LATERAL, OBLIQUE, COLOUR, SEVERAL_FRAMES, NOT_HUMAN, SCREEN)


def can_be_offered(path: str) -> bool:
    """Whether an image is one to label.

    Raw, lateral, oblique, colour and multi-frame DICOM images are not offered, nor are images of animals or screens.

    Args:
        path: the image's file, or a series' folder.
    """
    try:
        file = file_of(path)
        if not is_dicom(file):
            return True
        verdict = judge(read_header(file))
    except (OSError, ValueError):
        return False
    return verdict.reason not in _NOT_OFFERED and not verdict.raw


def _file(store: Store, image_id: str) -> str:
    """Return the file of an image; "" if it cannot be had now, such as a series that could not be fetched.

    Raises:
        DicomWebError: if the archive does not answer; the others would have to wait for it too.
    """
    try:
        return str(file_of(store.get_image_uri(image_id)))
    except DicomWebError:
        raise
    except AfireError:
        return ""


class Chooser:
    """Rank images by the results of models.

    Looking at an image takes time, so each call looks at no more than ``most`` images that it has not looked at before,
    drawn at random. The results are kept for as long as the model stays the same. In a store of thousands of images the
    first choices are the best of a sample, and later ones get better.

    Args:
        shelf: the models.
        most: maximum number of images to look at in one call.
    """

    def __init__(self, shelf: ModelShelf, most: int = 48) -> None:
        self.shelf = shelf
        self.most = most
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], dict[str, Tensor | None]] = {}
        self._offered: dict[str, float] = {}

    def offers(self, strategy: str) -> bool:
        """Whether there are models for a strategy."""
        if strategy == "random" or (strategy == "most_different" and self.shelf.file("encoder")):
            return True
        trained = ("classification", "segmentation")
        uses = {
            "most_anomalous": ("anomaly",),
            "most_uncertain": trained,
            "most_different": ("anomaly", *trained),
        }
        return any(map(self.shelf.offers, uses[strategy]))

    def choose(self, strategy: str, store: Store) -> dict[str, Any] | None:
        """Choose an image without label.

        Args:
            strategy: one of `STRATEGIES`.
            store: store of images and labels.

        Returns:
            ``id``, ``score`` (larger is more urgent), ``looked_at`` and ``unlabelled`` (numbers of images); None if all
            are labelled, or none can be read.

        Raises:
            NotFoundError: if there is no such strategy, or no model for it.
        """
        if strategy not in STRATEGIES:
            raise NotFoundError(f"there is no strategy of this name; there are {', '.join(STRATEGIES)}")
        labelled = [i for i in store.list_images() if has_label(store, i)]
        waiting = sorted(set(store.list_images()) - set(labelled))
        with self._lock:
            if strategy == "most_different":
                ranked = self._by_difference(store, waiting, labelled)
            elif strategy == "random":
                ranked = self._by_chance(store, waiting)
            else:
                value = self._anomaly if strategy == "most_anomalous" else self._uncertainty
                found = self._look(store, waiting, *value())
                ranked = sorted(((float(v), i) for i, v in found.items()), reverse=True)
            if not ranked:
                return None
            now = time.monotonic()
            fresh = [entry for entry in ranked if now - self._offered.get(entry[1], -math.inf) > AGAIN_AFTER]
            # all were offered: begin again with the one that was offered longest ago
            score, image_id = fresh[0] if fresh else min(ranked, key=lambda entry: self._offered[entry[1]])
            self._offered[image_id] = now
        logger.info("next sample by %s: looked at %d of %d images without label", strategy, len(ranked), len(waiting))
        return {"id": image_id, "score": score, "looked_at": len(ranked), "unlabelled": len(waiting)}

    def _anomaly(self) -> tuple[str, Callable[[Tensor], Tensor], tuple[int, int]]:
        loaded = self.shelf.get("anomaly")
        scorer = loaded.scorer
        detector = scorer.detector
        assert detector is not None

        def values(images: Tensor) -> Tensor:
            with loaded.lock:
                if scorer.reference is None:
                    difference = detector.features(images, (), restore=True).difference
                    assert difference is not None
                    return difference.flatten(1).mean(1)
                features = detector.features(images, scorer.reference.parts, layers=scorer.reference.layers)
                return scorer.reference.judge(features, detector.canvas_size).score

        return f"anomaly {loaded.version}", values, detector.canvas_size

    def _uncertainty(self) -> tuple[str, Callable[[Tensor], Tensor], tuple[int, int]]:
        use = "classification" if self.shelf.offers("classification") else "segmentation"
        loaded = self.shelf.get(use)
        network: Any = loaded.scorer.classifier or loaded.scorer.segmenter

        def values(images: Tensor) -> Tensor:
            p = network.probabilities(images.expand(-1, network.encoder.in_channels, -1, -1)).double()
            entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
            return entropy.flatten(1).mean(1).float()

        return f"{use} {loaded.version}", values, network.encoder.image_size

    def _by_chance(self, store: Store, waiting: list[str]) -> list[tuple[float, str]]:
        drawn = self._random.sample(waiting, len(waiting))
        drawn.sort(key=lambda i: self._offered.get(i, -math.inf))
        usable = (i for i in drawn[: self.most] if (file := _file(store, i)) and can_be_offered(file))
        return [(0.0, i) for i in islice(usable, 1)]  # an archive sends no more images than are needed

    def _by_difference(self, store: Store, waiting: list[str], labelled: list[str]) -> list[tuple[float, str]]:
        """Rank by distance to the nearest labelled image (Sener and Savarese, ICLR 2018: k-centre, greedy)."""
        encoder, version = self.shelf.encoder()

        def features(images: Tensor) -> Tensor:
            tokens = encoder(images.expand(-1, encoder.in_channels, -1, -1))
            return F.normalize(tokens[:, 1:].mean(1), dim=1)

        name = f"features {version}"
        found = self._look(store, waiting, name, features, encoder.image_size)
        if not found:
            return []
        ids, points = list(found), torch.stack(list(found.values()))
        known = self._look(store, labelled, name, features, encoder.image_size)
        # without labels the most typical image comes first: the nearest to the mean
        centres = torch.stack(list(known.values())) if known else points.mean(0, keepdim=True)
        distance = torch.cdist(points, centres).amin(1) * (1 if known else -1)
        return sorted(zip(distance.tolist(), ids, strict=True), reverse=True)

    def _look(
        self, store: Store, ids: Sequence[str], name: str, values: Callable[[Tensor], Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the values computed from images, after reading some more; unreadable ones are left out."""
        kind = name.partition(" ")[0]
        for old in [key for key in self._seen if key[0] == kind and key[1] != name]:
            del self._seen[old]  # values of an earlier model
        kept = self._seen.setdefault((kind, name), {})
        new = [i for i in ids if i not in kept]
        chosen = self._random.sample(new, min(self.most, len(new)))
        options = self.shelf.reader()

        def read(image_id: str) -> Tensor | None:
            if not (file := _file(store, image_id)):
                return None
            radiograph = read_radiograph(0, file, [size], options=options) if can_be_offered(file) else None
            if isinstance(radiograph, Radiograph):
                return radiograph.images[size]
            kept[image_id] = None  # not to be read again
            return None

        pictures = dict(zip(chosen, ahead(read, chosen, 2, 2 * BATCH), strict=True))
        usable = [(i, picture) for i, picture in pictures.items() if picture is not None]
        for start in range(0, len(usable), BATCH):
            batch = usable[start : start + BATCH]
            with torch.inference_mode():
                found = values(torch.stack([picture for _, picture in batch])).cpu()
            kept.update(zip([i for i, _ in batch], found, strict=True))
        return {i: value for i in ids if (value := kept.get(i)) is not None}
