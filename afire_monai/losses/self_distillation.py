"""DINO's loss: the student's view of an image agrees with the teacher's view of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afire_monai.core.distributed import sum_over_processes
from afire_monai.core.errors import AfireError


class SelfDistillationLoss(nn.Module):
    """Cross-entropy between a centred, sharpened teacher and a student (DINO, Caron et al., ICCV 2021, §3.1).

    Args:
        dim: K, width of the outputs.
        student_temperature: temperature of the student's softmax; 0.1 in the paper.
        teacher_temperature: temperature of the teacher's softmax; 0.04 in the paper (larger ones after a warm-up).
        center_momentum: momentum of the moving average of the teacher's outputs; 0.9 in the paper.

    Raises:
        AfireError: for a width below 2, a temperature that is not above 0, or a momentum outside 0…1.

    Example:
        >>> import torch
        >>> loss = SelfDistillationLoss(dim=4)
        >>> views = torch.zeros(2, 3, 4)  # two views of three images
        >>> round(loss(views, views).item(), 4)  # log 4: nothing is told apart yet
        1.3863
    """

    center: Tensor

    def __init__(
        self,
        dim: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if dim < 2:
            raise AfireError(f"head_dim must be at least 2, as a softmax over one value says nothing; got {dim}")
        if min(student_temperature, teacher_temperature) <= 0 or not 0 <= center_momentum <= 1:
            raise AfireError(
                "student_temperature and teacher_temperature must be above 0 and center_momentum in 0…1, got "
                f"{student_temperature}, {teacher_temperature} and {center_momentum}"
            )
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(dim))

    def forward(self, student: Tensor, teacher: Tensor, all_pairs: bool = False) -> Tensor:
        """Compute the loss with the centre as it stands.

        Args:
            student: (V, B, K) outputs for V views; the teacher saw the first T of them.
            teacher: (T, B, K) outputs without gradient, T at most V; V at least 2.
            all_pairs: the student saw none of the teacher's views, so every pair counts; V and T may be 1.

        Returns:
            Scalar: mean over images and over pairs of different views.

        Raises:
            AfireError: for shapes that do not fit.
        """
        (views, batch, _), (seen, *rest) = student.shape, teacher.shape
        if (views < 2 and not all_pairs) or seen > views or tuple(rest) != tuple(student.shape[1:]):
            raise AfireError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} do not fit")
        # autocast would round the product to bfloat16; this error exceeds the difference between batches
        with torch.autocast(student.device.type, enabled=False):
            target = ((teacher.float() - self.center) / self.teacher_temperature).softmax(-1)
            log_q = (student.float() / self.student_temperature).log_softmax(-1)
            pairs = -torch.einsum("tbk,sbk->ts", target, log_q) / batch
        if all_pairs:
            return pairs.mean()
        different = ~torch.eye(seen, views, dtype=torch.bool, device=pairs.device)
        return (pairs * different).sum() / different.sum()

    @torch.no_grad()
    def update_center(self, teacher: Tensor) -> None:
        """Move the centre towards the mean of the teacher's outputs (T, B, K) over all processes."""
        outputs = teacher.float()
        count = outputs.new_full((1,), outputs.shape[0] * outputs.shape[1])
        total = sum_over_processes(torch.cat([outputs.sum((0, 1)), count]))
        self.center.lerp_(total[:-1] / total[-1], 1 - self.center_momentum)
