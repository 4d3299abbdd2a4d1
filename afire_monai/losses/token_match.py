"""The matching loss: a student token predicts how this patient's cell differs from everyone else's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.distributed import share_of_mean
from afire_monai.core.errors import AfireError
from afire_monai.networks.prototypes import match_cells


class TokenMatchLoss(nn.Module):
    r"""Match each normal token of the student with the teacher's token of the same image and cell.

    This project's own term. The structure term's target is the same for every patient; here the cell's prototype is
    taken from both sides first, so the target is what this patient's cell differs by. With student logits s, teacher
    logits t and the prototype P_c of the cell (of several, the nearest to t):

        loss = −mean over matched normal tokens of Σ_k softmax((t − P_c) / τ_t)_k log softmax((s − P_c) / τ_s)_k.

    A constant output gives the target nothing to hold, and neither does the position: P_c is all that it could tell.

    Args:
        student_temperature: τ_s.
        teacher_temperature: τ_t; smaller is sharper.

    Raises:
        AfireError: for a temperature that is not above zero.

    Example:
        >>> import torch
        >>> loss = TokenMatchLoss()
        >>> teacher, prototypes = torch.eye(4)[None], torch.zeros(1, 4, 4)
        >>> matched = torch.ones(1, 4, dtype=torch.bool)
        >>> bool(loss(teacher, teacher, prototypes, matched) < loss(-teacher, teacher, prototypes, matched))
        True
    """

    def __init__(self, student_temperature: float = 0.1, teacher_temperature: float = 0.04) -> None:
        super().__init__()
        if min(student_temperature, teacher_temperature) <= 0:
            raise AfireError(
                f"temperatures must be above 0, got student_temperature {student_temperature} and "
                f"teacher_temperature {teacher_temperature}"
            )
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    def forward(self, student: Tensor, teacher: Tensor, prototypes: Tensor, matched: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (B, L, K) logits of the student.
            teacher: (B, L, K) logits of the teacher for the cells that the student's tokens show; any value if they are
                not matched.
            prototypes: (B, L, K) prototypes of these cells.
            matched: (B, L) bool, normal tokens whose cell the teacher sees as well.

        Returns:
            Scalar; averaged over processes it is the loss of the global batch. 0 without any match.

        Raises:
            AfireError: for shapes that do not fit one another.
        """
        if not student.shape == teacher.shape == prototypes.shape or matched.shape != student.shape[:2]:
            raise AfireError(
                f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, prototypes "
                f"{tuple(prototypes.shape)} and matched {tuple(matched.shape)} do not fit one another"
            )
        center = prototypes.float()
        target = ((teacher.float() - center) / self.teacher_temperature).softmax(-1)
        log_q = F.log_softmax((student.float() - center) / self.student_temperature, dim=-1)
        per_token = -(target * log_q).sum(-1) * matched
        return share_of_mean(per_token.sum(), matched.sum().float())


def teacher_tokens(teacher: Tensor, offset: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Arrange the teacher's tokens by the cells that the student's tokens show.

    Args:
        teacher: (B, L, K) tokens of the teacher's crop.
        offset: (B, 2) rows and columns of cells from the teacher's crop to the student's.
        grid: rows and columns (h, w) of a crop, L = h·w.

    Returns:
        (B, L, K), and (B, L) bool: whether the teacher's crop shows the cell at all; if not, the token is any other.
    """
    place, inside = match_cells(offset, grid, grid)
    return teacher.gather(1, place[..., None].expand_as(teacher)), inside
