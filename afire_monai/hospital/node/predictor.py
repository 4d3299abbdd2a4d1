"""Judge and predict the objects in the queue in batches, and write the results."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from afire_monai.core.errors import AfireError
from afire_monai.dicom_results.folder import possible_kinds, write_results
from afire_monai.dicom_results.objects import OutputError
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.hospital.node.queue import RECEIVED, REFUSED, Held, Queue, sync
from afire_monai.predictions.format import HEATMAPS, JUDGEMENT
from afire_monai.predictions.reading import LeftOut, Radiograph, ahead, read_radiograph
from afire_monai.predictions.results import pictures_of
from afire_monai.predictions.scoring import Answer, Scorer

MOST_TRIES = 5
"""An object is left out after the program ended this many times while it was predicted."""
ENDED = f"the program ended {MOST_TRIES} times while it was predicted"


class Predictor:
    """Work on the queue, as `afire predict` and `afire dicom-results` do on files.

    ``state`` is the state of an object once its results are written.
    """

    def __init__(
        self,
        queue: Queue,
        scorer: Scorer,
        kinds: Sequence[str] | None,
        batch_size: int,
        workers: int,
        state: str,
    ) -> None:
        self._queue, self._scorer, self._kinds, self._state = queue, scorer, kinds, state
        self._batch_size, self._workers = batch_size, workers

    def work(self, stop: threading.Event | None = None) -> int:
        """Take a batch and finish it; return how many objects were taken; 0 if none waits.

        Args:
            stop: event that ends the work after the radiograph that is being written; the others wait in the queue.

        Raises:
            OutputError: if results cannot be written (a full disk); the objects wait for another try.
            OSError: if the queue cannot be written.
        """
        stop = stop or threading.Event()
        held = self._queue.take(RECEIVED, self._batch_size)
        usable = []
        for one in held:
            if one.tries >= MOST_TRIES:
                self._queue.end(one.key, REFUSED, ENDED)
            else:
                usable.append(one)
        try:
            self._predict(usable, stop)
        except (OutputError, OSError):
            self._queue.give_back(usable)
            raise
        if stop.is_set():
            self._queue.give_back(usable)
        return len(held)

    def _predict(self, held: Sequence[Held], stop: threading.Event) -> None:
        radiographs: list[Radiograph] = []
        for place, result in enumerate(ahead(self._reading(held), range(len(held)), self._workers, self._batch_size)):
            if isinstance(result, LeftOut):
                self._queue.end(held[place].key, REFUSED, result.reason.partition(":")[0])
            else:
                radiographs.append(result)
        for radiograph, answer in self._scored(radiographs):
            if stop.is_set():
                return
            key = held[radiograph.index].key
            if answer is None:
                self._queue.end(key, REFUSED, "the model gives no result for it")
                continue
            try:
                self._write(key, radiograph, answer)
            except (OutputError, MemoryError):
                raise
            except AfireError as error:
                self._queue.end(key, REFUSED, str(getattr(error, "kind", "no results can be written for it")))
            except OSError as error:
                raise OutputError(f"results cannot be written: {error.strerror}") from error
            except Exception as error:  # one faulty object must not stop the node; the error may quote a header
                self._queue.end(key, REFUSED, f"unexpected error: {type(error).__name__}")

    def _reading(self, held: Sequence[Held]) -> Callable[[int], Radiograph | LeftOut]:
        def read(place: int) -> Radiograph | LeftOut:
            file = str(self._queue.file(held[place].key))
            return read_radiograph(place, file, self._scorer.sizes, False, self._scorer.reader, "refuse")

        return read

    def _scored(self, radiographs: list[Radiograph]) -> list[tuple[Radiograph, Answer | None]]:
        """Ask the models; where a batch fails, about each of its radiographs alone."""
        if not radiographs:
            return []
        try:
            return list(zip(radiographs, self._scorer.score(radiographs), strict=True))
        except (AfireError, RuntimeError):  # raised by PyTorch, also if memory is too small
            if len(radiographs) == 1:
                return [(radiographs[0], None)]
        return [pair for one in radiographs for pair in self._scored([one])]

    def _write(self, key: str, radiograph: Radiograph, answer: Answer) -> None:
        heat = pictures_of(radiograph, answer, list(self._scorer.mask_values.values()), False).get(HEATMAPS)
        record = {**answer.record, JUDGEMENT: radiograph.judgement, "model": self._scorer.facts}
        prediction = ImagePrediction.from_record(record, None if heat is None else heat.astype(np.float32) / 65535)
        prediction = replace(prediction, rests_on=self._scorer.rests_on)
        part = self._queue.results(f"{key}.part")
        shutil.rmtree(part, ignore_errors=True)
        kinds = possible_kinds(prediction) if self._kinds is None else self._kinds
        try:
            part.mkdir(mode=0o700)
            for path in write_results(self._queue.file(key), prediction, part, kinds, seed=self._queue.seed(key)):
                sync(path)
            sync(part)
            shutil.rmtree(self._queue.results(key), ignore_errors=True)
            os.replace(part, self._queue.results(key))
            sync(part.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._queue.end(key, self._state)
