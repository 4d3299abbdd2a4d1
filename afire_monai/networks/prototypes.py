"""The spatial-aware prototype bank: one prototype or several per grid cell, and its balanced assignment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afire_monai.core.distributed import rank, sum_over_processes, world_size
from afire_monai.core.errors import AfireError


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    """Turn scores into a balanced assignment by Sinkhorn-Knopp, in float32 and in the log domain.

    Each iteration first makes the K columns equally used, then each row a distribution.

    Args:
        scores: (N, K) real.
        temperature: divides the scores; smaller is sharper.
        iterations: rounds of both normalisations.

    Returns:
        (N, K) float32; each row sums to 1, each column to about N / K.

    Raises:
        AfireError: if ``scores`` is not two-dimensional or a setting is not above zero.
    """
    if scores.ndim != 2 or temperature <= 0 or iterations < 1:
        raise AfireError(
            f"sinkhorn needs (N, K) scores, a temperature above 0 and at least 1 iteration, got shape "
            f"{tuple(scores.shape)}, temperature {temperature}, iterations {iterations}"
        )
    log_q = scores.float() / temperature
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def match_cells(offset: Tensor, grid: tuple[int, int], other: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find for each cell of a crop the cell of another grid that shows the same place.

    Args:
        offset: (B, 2) rows and columns of cells from the other grid's corner to the crop's.
        grid: rows and columns (h, w) of the crop.
        other: rows and columns of the other grid.

    Returns:
        Cell of the other grid, (B, h·w) int64 in row-major order, and whether there is one, (B, h·w) bool; 0 if not.
    """
    rows = offset[:, :1] + torch.arange(grid[0], device=offset.device)
    columns = offset[:, 1:] + torch.arange(grid[1], device=offset.device)
    inside = ((rows >= 0) & (rows < other[0]))[:, :, None] & ((columns >= 0) & (columns < other[1]))[:, None, :]
    cells = rows[:, :, None] * other[1] + columns[:, None, :]
    return torch.where(inside, cells, 0).flatten(1), inside.flatten(1)


def token_places(cells: Tensor, count: int) -> Tensor:
    """Return which token of an image shows each cell of the canvas, (B, N) int64, -1 where no token shows the cell.

    Sums over the tokens of a cell then are sums over images of what is gathered by this: in a fixed order, and without
    many threads of a GPU adding to one place.

    Args:
        cells: (B, L) int64, the cell that each token shows; no cell twice in an image.
        count: N, number of cells.
    """
    tokens = torch.arange(cells.shape[1], device=cells.device).expand_as(cells)
    return cells.new_full((len(cells), count), -1).scatter_(1, cells, tokens)


class PrototypeBank(nn.Module):
    """Spatial-aware prototypes (AFiRe, arXiv 2504.10972, §Spatial-aware prototypes).

    Row n is the moving average of the teacher's token outputs that show cell n, over the batch and all processes. The
    state is a buffer: it is saved in checkpoints and equal on all processes.

    With several prototypes a cell (this project's reading of a cell that looks different in different people: build,
    sex, age), each token moves only the nearest of its cell's prototypes, as online k-means does (MacQueen, 1967). In
    the first epoch, which forgets the past at each step, images take turns instead, so that no prototype stays unused.
    With ``members``, each image has the prototype of its own kind of people instead, as in a bank guided by metadata
    (FINO, arXiv 2606.05107, whose banks are of whole images).

    Args:
        cells: N, number of cells of the canvas.
        dim: K, width of the token head's output.
        momentum: weight of the past in the moving average (0.75 in the paper).
        temperature: Sinkhorn temperature (0.05 in the paper).
        iterations: Sinkhorn iterations (3 in the paper).
        per_cell: M, prototypes of each cell (1 in the paper).

    Raises:
        AfireError: for a momentum outside 0…1 or no prototype a cell.

    Example:
        >>> import torch
        >>> bank = PrototypeBank(cells=16, dim=8)
        >>> bank.update(torch.nn.functional.normalize(torch.rand(4, 16, 8), dim=-1))  # of a teacher, for four images
        >>> bank.assignment().shape
        torch.Size([16, 8])
    """

    #: (N, K), or (N, M, K) for M above 1
    prototypes: Tensor

    def __init__(
        self,
        cells: int,
        dim: int = 256,
        momentum: float = 0.75,
        temperature: float = 0.05,
        iterations: int = 3,
        per_cell: int = 1,
    ) -> None:
        super().__init__()
        if per_cell < 1:
            raise AfireError(f"a cell needs at least 1 prototype, got per_cell {per_cell}")
        if not 0 <= momentum < 1:
            raise AfireError(f"prototype momentum must be in 0…1 (1 excluded), got {momentum}")
        self.cells = cells
        self.momentum = momentum
        self.temperature = temperature
        self.iterations = iterations
        self.per_cell = per_cell
        self.register_buffer("prototypes", torch.zeros(cells, *[per_cell] * (per_cell > 1), dim))

    def _nearest(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Return which of its cell's prototypes, (B, L) in 0…M − 1, is nearest to each token (B, L, K) of ``cells``."""
        # |t − p|² minus |t|²; one prototype after the other, which takes M times less memory
        distances = [(p - 2 * tokens).mul(p).sum(-1) for p in (each[cells] for each in self.prototypes.unbind(1))]
        return torch.stack(distances, -1).argmin(-1)

    @torch.no_grad()
    def of_tokens(self, tokens: Tensor, cells: Tensor | None = None, members: Tensor | None = None) -> Tensor:
        """Return each token's prototype, (B, L, K): its cell's, or of its cell's its image's or the nearest.

        Args:
            tokens: (B, L, K) cosines.
            cells: (B, L) int64, the cell that each token shows; None when token l shows cell l.
            members: (B,) int64 in 0…M − 1, which of several prototypes each image has; None for the nearest.
        """
        if cells is None:
            cells = torch.arange(self.cells, device=tokens.device).expand(len(tokens), -1)
        if self.per_cell == 1:
            return self.prototypes[cells]
        if members is not None:
            return self.prototypes[cells, members[:, None]]
        return self.prototypes[cells, self._nearest(tokens.float(), cells)]

    @torch.no_grad()
    def update(
        self,
        teacher_logits: Tensor,
        cells: Tensor | None = None,
        replace: bool = False,
        members: Tensor | None = None,
    ) -> None:
        """Move each prototype towards the mean of its tokens: those of its cell, of several its images' or the nearest.

        Args:
            teacher_logits: (B, L, K) cosines of the teacher for normal images.
            cells: (B, L) int64, the cell that each token shows; None when token l shows cell l (then L = N).
            replace: forget the past, as in the first epoch of the release.
            members: as for :meth:`of_tokens`.

        Raises:
            AfireError: for shapes that do not fit the bank.
        """
        batch, tokens, dim = teacher_logits.shape
        if dim != self.prototypes.shape[-1] or (cells is None and tokens != self.cells):
            raise AfireError(
                f"the bank has {self.cells} cells with prototypes of width {self.prototypes.shape[-1]}, "
                f"got teacher output of shape {tuple(teacher_logits.shape)}"
            )
        values = teacher_logits.float()
        rows = self.cells * self.per_cell
        if self.per_cell > 1:
            if cells is None:
                cells = torch.arange(tokens, device=values.device).expand(batch, -1)
            if members is None and replace:
                # take turns; numbered as EpochSampler deals images to the processes
                members = (torch.arange(batch, device=values.device) * world_size() + rank()) % self.per_cell
            cells = cells * self.per_cell + (self._nearest(values, cells) if members is None else members[:, None])
        # one more column for the number of tokens, so that a single small collective is enough
        totals = values.new_full((rows, dim + 1), float(batch))
        if cells is None:
            totals[:, :dim] = values.sum(0)
        else:
            places = token_places(cells, rows)
            shown = places >= 0
            at_cells = values.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, dim))
            totals[:, :dim] = (at_cells * shown[..., None]).sum(0)
            totals[:, dim] = shown.sum(0)
        totals = sum_over_processes(totals)
        count = totals[:, dim:]
        mean = totals[:, :dim] / count.clamp_min(1)
        past = 0.0 if replace else self.momentum
        before = self.prototypes.view(rows, dim)
        # a prototype that no token showed stays as it is
        before.copy_(torch.where(count > 0, before * past + mean * (1 - past), before))

    def assignment(self) -> Tensor:
        """Return the balanced assignment of prototypes to the K dimensions, each row a distribution.

        Returns:
            (N, K) float32, or (N, M, K) for several prototypes a cell, all of which are balanced together.
        """
        rows = self.prototypes.flatten(0, -2)
        return sinkhorn(rows, self.temperature, self.iterations).view_as(self.prototypes)
