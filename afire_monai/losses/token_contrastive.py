"""The token-wise contrastive loss: structure and category consistency."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.distributed import (
    max_over_processes,
    share_of_mean,
    sum_over_processes,
    sum_over_processes_with_gradient,
    world_size,
)
from afire_monai.core.errors import AfireError
from afire_monai.networks.prototypes import token_places


class TokenContrastiveTerms(NamedTuple):
    """The two terms, each a scalar; averaged over processes they are the loss of the global batch."""

    structure: Tensor
    category: Tensor


def cell_indices(batch: int, tokens: int, device: torch.device) -> Tensor:
    """Return the cell index (B, L) of the published form, where token l of each image shows cell l."""
    return torch.arange(tokens, device=device).expand(batch, tokens)


def similarities(
    student_logits: Tensor, assignment: Tensor, temperature: float, members: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compare each token with each cell's prototype.

    Args:
        student_logits: (B, L, K) cosines.
        assignment: (N, K), each row a distribution; (N, M, K) for M prototypes a cell.
        temperature: τ_s, divides the cosines.
        members: (B,) int64, which of M prototypes counts for each image; None for all.

    Returns:
        ``cross`` (B, L, N) and ``log_partition`` (B, L): s(i, j, n) = Σ_k C_nk log q_ijk = cross − log_partition, as
        the rows of C sum to one. They are kept apart because the second cancels in a softmax over n. With several
        prototypes a cell, e^s is the mean over them (this project's reading): a mixture, in which equal ones count as
        one.
    """
    # autocast would round the product to bfloat16; this error exceeds the difference between tokens of one cell
    with torch.autocast(student_logits.device.type, enabled=False):
        logits = student_logits.float() / temperature
        if members is not None:
            return logits @ assignment.float()[:, members].permute(1, 2, 0), torch.logsumexp(logits, dim=-1)
        cross = logits @ assignment.float().flatten(0, -2).T
        if assignment.ndim == 3:
            cross = cross.unflatten(-1, assignment.shape[:2]).logsumexp(-1) - math.log(assignment.shape[1])
        return cross, torch.logsumexp(logits, dim=-1)


@torch.no_grad()
def own_cell_accuracy(
    student_logits: Tensor, assignment: Tensor, temperature: float, cells: Tensor | None = None
) -> Tensor:
    """Return the share of tokens, a scalar in 0…1, whose most similar prototype is that of the cell they show.

    Args:
        student_logits: (B, L, K) cosines.
        assignment: as for :func:`similarities`.
        temperature: τ_s.
        cells: (B, L) int64; None when token l shows cell l.
    """
    cross, _ = similarities(student_logits, assignment, temperature)
    if cells is None:
        cells = cell_indices(student_logits.shape[0], student_logits.shape[1], student_logits.device)
    return (cross.argmax(-1) == cells).float().mean()


class TokenContrastiveLoss(nn.Module):
    r"""Pull each normal token to the prototype of its own cell (AFiRe, arXiv 2504.10972, §Token-wise contrastive loss).

    With log q = log softmax(Q_S / τ_s), C the assignment, s(i,j,n) = Σ_k C_nk log q_ijk and c the cell of token (i, j):

    - structure, ``"contrastive"``: −mean over normal tokens of log [e^{s(i,j,c)/τ} / Σ_n e^{s(i,j,n)/τ}];
    - structure, ``"cross_entropy"``: −mean over normal tokens of s(i,j,c), the only term of the released code;
    - category: −mean, over normal tokens of cells that also hold abnormal tokens in the batch, of
      log [e^{s(i,j,c)/τ} / (e^{s(i,j,c)/τ} + Σ e^{s(i',j',c)/τ})], the sum over the abnormal tokens that show cell c.

    The paper names both terms and the quantity that they bound; both denominators are this project's reading. Means and
    sums run over all processes. A term without any token is zero, with zero gradient.

    Args:
        structure: the reading of the first term.
        category_weight: weight of the second term; 0 leaves it out (the release).
        student_temperature: τ_s.
        temperature: τ; this project's reading, the paper gives no value.

    Raises:
        AfireError: for an unknown reading or a temperature that is not above zero.

    Example:
        >>> import torch
        >>> loss = TokenContrastiveLoss()
        >>> logits, assignment = torch.eye(4)[None], torch.eye(4)  # four cells; each token lies on its own prototype
        >>> abnormal = torch.zeros(1, 4, dtype=torch.bool)
        >>> right, wrong = loss(logits, assignment, abnormal), loss(logits.roll(1, dims=1), assignment, abnormal)
        >>> bool(right.structure < wrong.structure), right.category.item()  # no abnormal token, so no category term
        (True, 0.0)
    """

    def __init__(
        self,
        structure: Literal["contrastive", "cross_entropy"] = "contrastive",
        category_weight: float = 1.0,
        student_temperature: float = 0.1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if structure not in ("contrastive", "cross_entropy"):
            raise AfireError(f"structure must be 'contrastive' or 'cross_entropy', got {structure!r}")
        if student_temperature <= 0 or temperature <= 0 or category_weight < 0:
            raise AfireError(
                f"temperatures must be above 0 and category_weight at least 0, got student_temperature "
                f"{student_temperature}, temperature {temperature}, category_weight {category_weight}"
            )
        self.structure = structure
        self.category_weight = category_weight
        self.student_temperature = student_temperature
        self.temperature = temperature

    def forward(
        self,
        student_logits: Tensor,
        assignment: Tensor,
        abnormal: Tensor,
        cells: Tensor | None = None,
        ignored: Tensor | None = None,
        members: Tensor | None = None,
    ) -> TokenContrastiveTerms:
        """Compute both terms, unweighted; multiply ``category`` by :attr:`category_weight`.

        Args:
            student_logits: (B, L, K) cosines of the student for the lesioned twin.
            assignment: (N, K), or (N, M, K) for several prototypes a cell, from ``PrototypeBank.assignment``.
            abnormal: (B, L) bool, cells with lesion.
            cells: (B, L) int64, the canvas cell that each token shows, no cell twice in an image; None if token l shows
                cell l (then N = L).
            ignored: (B, L) bool, tokens that count neither as normal nor as abnormal; None for none.
            members: as for :func:`similarities`.

        Raises:
            AfireError: for shapes that do not fit one another.
        """
        batch, tokens, dim = student_logits.shape
        if assignment.shape[-1] != dim or abnormal.shape != (batch, tokens):
            raise AfireError(
                f"student_logits {tuple(student_logits.shape)} needs an assignment (N, {dim}) and abnormal "
                f"({batch}, {tokens}), got {tuple(assignment.shape)} and {tuple(abnormal.shape)}"
            )
        if cells is None:
            if assignment.shape[0] != tokens:
                raise AfireError(f"{assignment.shape[0]} prototypes for {tokens} tokens: give their cells")
            cells = cell_indices(batch, tokens, student_logits.device)
        cross, log_partition = similarities(student_logits, assignment, self.student_temperature, members)
        own_cross = cross.gather(-1, cells[..., None])[..., 0]
        own = own_cross - log_partition
        if self.structure == "contrastive":
            per_token = torch.logsumexp(cross / self.temperature, dim=-1) - own_cross / self.temperature
        else:
            per_token = -own
        normal = ~abnormal if ignored is None else ~(abnormal | ignored)
        return self._reduce(per_token, own / self.temperature, normal, abnormal, cells, assignment.shape[0])

    def _reduce(
        self, structure: Tensor, own: Tensor, normal: Tensor, abnormal: Tensor, cells: Tensor, count: int
    ) -> TokenContrastiveTerms:
        """Average per-token values (all (B, L)) over the tokens of all processes that each term is about."""
        structure_term = share_of_mean((structure * normal).sum(), normal.sum().float())
        if self.category_weight == 0:
            return TokenContrastiveTerms(structure_term, torch.zeros_like(structure_term))
        # from here on, values are by cell of the canvas, (B, N)
        places = token_places(cells, count)
        shown, places = places >= 0, places.clamp(min=0)
        own, normal, abnormal = (
            own.gather(1, places),
            normal.gather(1, places) & shown,
            abnormal.gather(1, places) & shown,
        )
        counts = sum_over_processes(torch.stack([normal.sum(0), abnormal.sum(0)]).float())
        compared = counts[1] > 0
        pairs = (counts[0] * compared).sum().clamp_min(1)
        distance = F.softplus(self._log_abnormal_mass(own, abnormal) - own)
        category_term = (distance * (normal & compared)).sum() * world_size() / pairs
        return TokenContrastiveTerms(structure_term, category_term)

    @staticmethod
    def _log_abnormal_mass(own: Tensor, abnormal: Tensor) -> Tensor:
        """Return log Σ e^{own} over the abnormal tokens of each cell, (N,) of (B, N); 0 where a cell has none."""
        low = torch.finfo(own.dtype).min
        peak = max_over_processes(own.detach().masked_fill(~abnormal, low).amax(0))
        peak = torch.where(peak == low, torch.zeros_like(peak), peak)
        # masking before the exponential keeps the gradient of left-out tokens at zero instead of 0 · inf
        shifted = torch.where(abnormal, own - peak, torch.full_like(own, -1e4))
        mass = sum_over_processes_with_gradient(shifted.exp().sum(0))
        return torch.where(mass > 0, mass, torch.ones_like(mass)).log() + peak
