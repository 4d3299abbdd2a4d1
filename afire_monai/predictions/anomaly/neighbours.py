"""The nearest normal tokens of a cell: how far a token is from what was seen at its place in normal radiographs."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

NEAREST = 3


class CellNeighbours(nn.Module):
    """Mean cosine distance of tokens to the nearest normal tokens of their cell.

    As in PatchCore (Roth et al., CVPR 2022) and AnomalyDINO (Damm et al., WACV 2025), but a token is compared with
    tokens of the same place of the canvas alone, or of places at most ``window`` cells away (this project's reading:
    radiographs are aligned, so that a place shows the same anatomy).

    Args:
        bank: (N, m, D) tokens of m normal radiographs in N cells; kept with the precision of float16.
        canvas: rows and columns of the cells.
        nearest: number of normal tokens that a distance is averaged over.
        window: cells that a normal token may be away, in each direction.

    Raises:
        ValueError: if shapes do not fit.
    """

    bank: Tensor
    places: Tensor
    inside: Tensor

    def __init__(self, bank: Tensor, canvas: tuple[int, int], nearest: int = NEAREST, window: int = 0) -> None:
        super().__init__()
        if bank.ndim != 3 or len(bank) != canvas[0] * canvas[1] or not 1 <= nearest <= bank.shape[1]:
            raise ValueError(f"{tuple(bank.shape)} tokens for {nearest} nearest in a canvas of {canvas} cells")
        self.nearest = nearest
        self.window = window
        # float16 is what is written; with its precision here, a saved reference judges as before
        self.register_buffer("bank", F.normalize(bank.float(), dim=-1).half().float())
        places, inside = _moved(canvas, window)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("inside", inside, persistent=False)

    def distance(self, tokens: Tensor, excluded: Tensor | None = None) -> Tensor:
        """Return 1 minus the mean cosine to the nearest normal tokens, (B, N) in 0…2.

        Args:
            tokens: (B, N, D).
            excluded: (B, m) bool, normal radiographs that an image is not compared with, such as those of its patient.
        """
        queries = F.normalize(tokens, dim=-1).transpose(0, 1)
        found = []
        # the bank stays where it is and the queries move, as they are far fewer
        for step, inside in enumerate(self.inside):
            cosine = queries[self.places[-1 - step]] @ self.bank.transpose(1, 2)
            if excluded is not None:
                cosine = cosine.masked_fill(excluded, -torch.inf)
            best = cosine.topk(self.nearest, 2).values
            found.append(best[self.places[step]].masked_fill(~inside[:, None, None], -torch.inf))
        return (1 - torch.cat(found, 2).topk(self.nearest, 2).values.mean(2)).T


def _moved(canvas: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """Return for each step within the window the cell that lies there from each cell, and whether there is one.

    Args:
        canvas: rows and columns of the cells.
        window: largest step, in cells.

    Returns:
        (W, N) int64, kept within the canvas, and (W, N) bool. Step W - 1 - k is the reverse of step k.
    """
    rows, columns = torch.meshgrid(torch.arange(canvas[0]), torch.arange(canvas[1]), indexing="ij")
    steps = torch.cartesian_prod(*[torch.arange(-window, window + 1)] * 2)
    row, column = rows.flatten() + steps[:, :1], columns.flatten() + steps[:, 1:]
    inside = (row >= 0) & (row < canvas[0]) & (column >= 0) & (column < canvas[1])
    return row.clamp(0, canvas[0] - 1) * canvas[1] + column.clamp(0, canvas[1] - 1), inside


def fit_neighbours(
    tokens: Tensor, patients: Tensor, canvas: tuple[int, int], most: int, window: int = 0
) -> tuple[CellNeighbours, Tensor]:
    """Keep tokens of normal radiographs; compare each radiograph with those of other patients.

    Args:
        tokens: (n, N, D).
        patients: (n,) int64, number of the patient of each.
        canvas: rows and columns of the cells.
        most: keep at most so many radiographs; as many patients as there can be.
        window: see :class:`CellNeighbours`.

    Returns:
        The neighbours, and distances (n, N).
    """
    kept = _varied(patients, most)
    excluded = patients[:, None] == patients[kept]
    # a patient with nearly all radiographs leaves few others
    nearest = min(NEAREST, int((~excluded).sum(1).min()))
    model = CellNeighbours(tokens[kept].transpose(0, 1), canvas, nearest, window)
    batches = zip(tokens.split(16), excluded.split(16), strict=True)
    return model, torch.cat([model.distance(some.float(), own) for some, own in batches])


def _varied(patients: Tensor, most: int) -> Tensor:
    """Return (m,) places of at most ``most`` radiographs: the first of each patient, then the second, and so on.

    Where only some of the patients can be taken, they are spread over the list.
    """
    by_patient = patients.argsort(stable=True)
    counts = patients.bincount()
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(patients)
    turn[by_patient] = torch.arange(len(patients)) - starts.repeat_interleave(counts)
    ordered = turn.argsort(stable=True)
    chosen = []
    for taken in range(int(turn.max()) + 1):
        some = ordered[turn[ordered] == taken]
        room = min(most, len(some))
        chosen.append(some[torch.arange(room) * len(some) // max(room, 1)])
        most -= room
    return torch.cat(chosen).sort().values
