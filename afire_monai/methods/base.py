"""The interface between the trainer and any pre-training method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from afire_monai.networks import AnomalyRestorationDecoder, Encoder


class Method(nn.Module, ABC):
    """A pre-training method, with or without a teacher.

    A subclass sets :attr:`student` (what the optimiser trains, one forward call a step) and, where the method has one,
    :attr:`teacher` (its moving average, without gradient, whose submodules have the student's names). Everything that
    must survive a restart is a parameter or buffer of the method. All trainable parameters take part in each step.

    Student and teacher may run in bfloat16, by autocast. What is around them, views and losses, is float32: call them
    through :meth:`student_forward` and :meth:`teacher_forward`.
    """

    student: nn.Module
    teacher: nn.Module | None
    #: uniform numbers in 0…1 that one image needs in one step
    draws: int
    #: weight of each named loss in the total
    loss_weights: dict[str, float]
    #: type in which student and teacher run, by autocast
    network_dtype: torch.dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.teacher = None
        # the callable for the student: the student itself, or its distributed or compiled form; kept out of the module
        # tree, so that state-dict names do not depend on it
        self._student_call: list[Callable[..., tuple[Tensor, ...]]] = []

    def call_student_through(self, wrapper: Callable[..., tuple[Tensor, ...]]) -> None:
        """Send the student's forward calls through ``wrapper``, for example ``DistributedDataParallel(student)``."""
        self._student_call = [wrapper]

    def student_forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call the student in :attr:`network_dtype`, through its distributed or compiled form where one is set."""
        return self._call(self._student_call[0] if self._student_call else self.student, inputs)

    def teacher_forward(self, *inputs: Tensor) -> Any:
        """Call the teacher in :attr:`network_dtype`."""
        return self._call(self.teacher, inputs)

    def _call(self, network: Any, inputs: tuple[Tensor, ...]) -> Any:
        with torch.autocast(inputs[0].device.type, self.network_dtype, enabled=self.network_dtype != torch.float32):
            return network(*inputs)

    def batch_losses(self, batch: dict[str, Tensor], uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the losses of one step from the loader's batch; the trainer calls this.

        ``batch`` holds ``image`` (B, C, Hc, Wc) and what else the data set gives; the rest is as for :meth:`losses`.

        Returns:
            As :meth:`losses`, which this calls unless a method needs more than images.
        """
        return self.losses(batch["image"], uniforms, first_epoch)

    @abstractmethod
    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the named losses of one step.

        Args:
            images: (B, C, Hc, Wc) normal radiographs in 0…1, at :attr:`canvas_size`.
            uniforms: (B, draws) float32 in 0…1, this step's random numbers.
            first_epoch: whether this is the first epoch of training.

        Returns:
            Unweighted scalars; averaged over processes each is the loss of the global batch.
        """

    @abstractmethod
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure, without gradient, whether training is sound on normal images that it does not see."""

    @abstractmethod
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Return named pictures (B, 1, H, W) in 0…1 that show how the method changes these images."""

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the method wants; the encoder's unless a method says more.

        A method that cuts views out of its images (DINO, MAE with a view) takes larger ones as well.
        """
        return self.export_encoder.image_size

    @property
    @abstractmethod
    def export_encoder(self) -> Encoder:
        """The encoder that later tasks take (the teacher's, where there is one)."""

    @property
    def export_decoder(self) -> AnomalyRestorationDecoder | None:
        """The decoder that restores pictures from the student's tokens, for anomaly maps; None if there is none."""
        return None

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that stay frozen at the start of training; none unless a method says otherwise."""
        return []

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Return the student's named parameters that the optimiser trains."""
        return [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher, if there is one, towards the student: teacher ← m · teacher + (1 − m) · student.

        So do statistics that it keeps (of batch norm); counts are taken over.
        """
        if self.teacher is None:
            return
        student, teacher = self.student.state_dict(), self.teacher.state_dict()
        moving = [name for name, value in teacher.items() if value.is_floating_point()]
        torch._foreach_lerp_([teacher[name] for name in moving], [student[name] for name in moving], 1 - momentum)
        for name in teacher.keys() - set(moving):
            teacher[name].copy_(student[name])

    def train(self, mode: bool = True) -> Method:
        """Set training mode for the student only: a teacher is always in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self
