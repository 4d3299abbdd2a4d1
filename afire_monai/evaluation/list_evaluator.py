"""Predict and evaluate a section of a data list in one object, for the bundle's ``evaluate.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afire_monai.datalists.targets import UncertainPolicy
from afire_monai.evaluation.evaluate import run_evaluation
from afire_monai.predictions.predict import Source, predict
from afire_monai.predictions.scoring import Scorer


@dataclass
class ListEvaluator:
    """The ``evaluator`` of ``evaluate.yaml``; as with MONAI's engines, ``run`` does the work."""

    network: Scorer  #: the models
    dataset: Source  #: the images, from `afire_monai.predictions.predict.find_source`
    datalist: str | Path  #: the data list that they are from
    output_dir: str | Path  #: gets predictions/ and evaluation/
    compare: str | Path = ""  #: folder of another model's predictions of the same section
    uncertain: UncertainPolicy = "ignore"  #: meaning of label value -1
    batch_size: int = 16
    repeats: int = 2000  #: number of bootstrap draws
    seed: int = 0  #: seed of the draws
    base_dir: str | Path = ""  #: folder that the list's relative paths start from; the list's own unless given

    def run(self) -> dict[str, Any]:
        """Predict the images that have no prediction yet, evaluate all, and return the results (see `run_evaluation`).

        Raises:
            AfireError: for files, models or settings that cannot be used.
        """
        folder = Path(self.output_dir) / "predictions"
        predict(self.dataset, self.network, folder, batch_size=self.batch_size, resume=True, progress=True)
        return run_evaluation(
            folder, self.datalist, self.dataset.section, Path(self.output_dir) / "evaluation", self.compare,
            self.uncertain, repeats=self.repeats, seed=self.seed, base_dir=self.base_dir,
        )  # fmt: skip
