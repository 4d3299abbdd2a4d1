"""Models fitted to normal radiographs: Gaussians of tokens, and nearest normal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 0.01


class CellGaussian(nn.Module):
    """Distances of tokens to the normal tokens of their cell.

    One covariance is shared by all cells (this project's reading of PaDiM, Defard et al., ICPR 2021, which has one for
    each place): it needs hundreds of times fewer radiographs and did as well. With one cell it judges whole images.

    Args:
        mean: (N, D).
        whitening: (D, D) W with W Wᵀ the inverse of the covariance.
        cells: N, if it is known.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> judge = CellGaussian(mean=torch.zeros(4, 2), whitening=torch.eye(2))  # four cells
        >>> judge.distance(torch.tensor([[[3.0, 4.0]] * 4]))
        tensor([[5., 5., 5., 5.]])
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor, cells: int | None = None) -> None:
        super().__init__()
        expected = (cells or len(mean), len(whitening)), (mean.shape[-1],) * 2
        if (tuple(mean.shape), tuple(whitening.shape)) != expected:
            raise ValueError(f"mean and whitening have shapes {tuple(mean.shape)} and {tuple(whitening.shape)}")
        self.register_buffer("mean", mean.float())
        self.register_buffer("whitening", whitening.float())

    def distance(self, tokens: Tensor) -> Tensor:
        """Return Mahalanobis' distance (B, N) of tokens (B, N, D) to the mean of their cell."""
        return torch.linalg.vector_norm((tokens - self.mean) @ self.whitening, dim=-1)


@dataclass
class Moments:
    """Sums over radiographs, from which Gaussians with and without some of them are fitted."""

    count: int  #: number of radiographs
    first: Tensor  #: (N, D) float64, sum of tokens
    second: Tensor  #: (D, D) float64, sum of outer products over radiographs and cells

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """Sum tokens (n, N, D), a few radiographs at a time as float64."""
        first = torch.zeros(tokens.shape[1:], dtype=torch.float64)
        second = torch.zeros(tokens.shape[2], tokens.shape[2], dtype=torch.float64)
        for some in tokens.split(64):
            flat = some.double().flatten(0, 1)
            first += some.double().sum(0)
            second += flat.T @ flat
        return cls(len(tokens), first, second)

    @classmethod
    def sum(cls, parts: Sequence[Moments]) -> Moments:
        """Add up."""
        return cls(
            sum(p.count for p in parts),
            torch.stack([p.first for p in parts]).sum(0),
            torch.stack([p.second for p in parts]).sum(0),
        )

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.first - other.first, self.second - other.second)

    def fit(self) -> CellGaussian:
        """Fit the Gaussian; a hundredth of the mean variance is added to each direction, so that none vanishes."""
        mean = self.first / self.count
        covariance = (self.second - self.count * mean.T @ mean) / (max(self.count - 1, 1) * len(mean))
        ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
        return CellGaussian(mean, _whitening(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)))


def fit_tokens(tokens: Tensor, fold: Tensor) -> tuple[CellGaussian, Tensor]:
    """Fit a Gaussian to the tokens of each cell; return the Gaussian of all, and cross-fitted distances (n, N).

    Args:
        tokens: (n, N, D).
        fold: (n,) int64; radiographs of a fold are judged by the fit to the other folds.
    """
    parts = [Moments.of(tokens[fold == number]) for number in range(int(fold.max()) + 1)]
    total = Moments.sum(parts)
    distances = torch.zeros(tokens.shape[:2])
    for number, part in enumerate(parts):
        distances[fold == number] = (total - part).fit().distance(tokens[fold == number].float())
    return total.fit(), distances


def fit_images(values: Tensor, patients: Tensor) -> tuple[CellGaussian, Tensor]:
    """Fit a Gaussian with the shrunk covariance of Ledoit and Wolf (2004) to one vector an image.

    There may be fewer images than dimensions, so that a fit without a tenth of the patients would differ much from the
    fit to all. Therefore, each patient is left out separately, with the shrinkage of all.

    Args:
        values: (n, 1, D).
        patients: (n,) int64, number of the patient of each.

    Returns:
        The Gaussian of all, and distances (n, 1) of each image to the Gaussian without its patient.
    """
    from sklearn.covariance import LedoitWolf  # slow to import, and not needed for judging

    images = values[:, 0].double()
    fitted = LedoitWolf(store_precision=False).fit(images.numpy())
    mean, covariance = (torch.from_numpy(a) for a in (fitted.location_, fitted.covariance_))
    whitening = _whitening(covariance + 1e-12 * torch.eye(len(covariance), dtype=torch.float64))
    white = (images - mean) @ whitening
    distances = torch.zeros(len(images), dtype=torch.float64)
    for patient in patients.unique().tolist():
        own = patients == patient
        distances[own] = _distances_without(white[own], len(images), 1 - float(fitted.shrinkage_))
    return CellGaussian(mean[None], whitening), distances.float()[:, None]


def _distances_without(white: Tensor, count: int, weight: float) -> Tensor:
    """Return Mahalanobis' distances (k,) of a patient's images to the Gaussian of the others.

    Leaving images out changes the covariance by a matrix of rank k + 1, so that its inverse follows from that of all
    (Woodbury's identity). The shrinkage target is scaled with the rest, by a k-th of the n images.

    Args:
        white: (k, D) the patient's images, centred and whitened by the Gaussian of all.
        count: n, number of all images.
        weight: of the sample covariance against the shrinkage target, in 0…1.
    """
    k = len(white)
    others = count - k
    gram = white @ white.T
    one = torch.ones(1, k, dtype=white.dtype)
    removed = (weight / count) ** 0.5 * torch.cat([torch.eye(k, dtype=white.dtype), one / others**0.5])
    centred = torch.eye(k, dtype=white.dtype) + one / others
    inner = torch.eye(k + 1, dtype=white.dtype) - removed @ gram @ removed.T
    moved = removed @ gram @ centred.T
    squared = (centred @ gram * centred).sum(1) + (moved * torch.linalg.solve(inner, moved)).sum(0)
    return (squared * others / count).clamp_min(0).sqrt()


def _whitening(covariance: Tensor) -> Tensor:
    return torch.linalg.inv(torch.linalg.cholesky(covariance)).T.contiguous()


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

    Example:
        >>> import torch
        >>> bank = torch.eye(2)[:, None]  # one normal token in each of two cells
        >>> CellNeighbours(bank, canvas=(1, 2), nearest=1).distance(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
        tensor([[0., 1.]])
    """

    bank: Tensor
    places: Tensor
    inside: Tensor

    def __init__(self, bank: Tensor, canvas: tuple[int, int], nearest: int = NEAREST, window: int = 0) -> None:
        super().__init__()
        if bank.ndim != 3 or len(bank) != canvas[0] * canvas[1] or not 1 <= nearest <= bank.shape[1]:
            raise ValueError(f"{tuple(bank.shape)} tokens for {nearest} nearest in a canvas of {canvas} cells")
        if not 0 <= window <= max(canvas):
            raise ValueError(f"a window of {window} cells in a canvas of {canvas}")
        self.nearest = nearest
        self.window = window
        # references are saved as float16; with its precision here, a saved reference judges as before
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
        # the queries are moved and not the bank, as they are far fewer
        for step, inside in enumerate(self.inside):
            cosine = queries[self.places[-1 - step]] @ self.bank.transpose(1, 2)
            if excluded is not None:
                cosine = cosine.masked_fill(excluded, -torch.inf)
            best = cosine.topk(self.nearest, 2).values
            found.append(best[self.places[step]].masked_fill(~inside[:, None, None], -torch.inf))
        return (1 - torch.cat(found, 2).topk(self.nearest, 2).values.mean(2)).T


def _moved(canvas: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """Return for each step within the window the cell that lies there from each cell, and whether there is one.

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
        most: largest number of radiographs to keep, from as many patients as possible.
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

    If only some of the patients can be taken, they are spread over the list.
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
