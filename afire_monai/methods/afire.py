"""AFiRe: anatomy-driven pre-training with synthetic lesions, spatial prototypes and restoration."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from afire_monai.errors import AfireError
from afire_monai.losses import RestorationLoss, TokenContrastiveLoss
from afire_monai.methods.afire_health import measure_health
from afire_monai.methods.base import Method
from afire_monai.methods.grid_shift import GridShift
from afire_monai.networks import AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTEncoder
from afire_monai.transforms import SyntheticLesionMaskBatch


class AFiReViews(NamedTuple):
    """What student and teacher see in one step; images (B, C, H, W) in 0…1."""

    #: the student's crop with lesions
    twin: Tensor
    #: the student's crop without lesions: what is to be restored
    clean: Tensor
    #: the teacher's crop, without lesions
    normal: Tensor
    #: (B, 1, H, W), 1 where lesion was added
    mask: Tensor
    #: (B, L) bool, cells with lesion
    abnormal: Tensor
    #: (B, L) int64, canvas cell of each student token; None in the published form
    cells: Tensor | None
    #: (B, L) int64, canvas cell of each teacher token; None in the published form
    teacher_cells: Tensor | None


class AFiReStudent(nn.Module):
    """Encoder, token head and restoration decoder, called once a step."""

    encoder: ViTEncoder
    head: TokenHead
    decoder: AnomalyRestorationDecoder

    def __init__(self, encoder: ViTEncoder, head: TokenHead, decoder: AnomalyRestorationDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.decoder = decoder

    def forward(self, twin: Tensor, abnormal: Tensor) -> tuple[Tensor, Tensor]:
        """Give token logits (B, L, K) and the restored image (B, C, H, W) in normalised units."""
        tokens = self.encoder(twin)
        return self.head(tokens[:, 1:]), self.decoder(tokens, abnormal)


class AFiReTeacher(nn.Module):
    """Encoder and token head; a moving average of the student's."""

    encoder: ViTEncoder
    head: TokenHead

    def __init__(self, encoder: ViTEncoder, head: TokenHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Give token logits (B, L, K)."""
        return self.head(self.encoder(images)[:, 1:])


def abnormal_cells(mask: Tensor, patch_size: int) -> Tensor:
    """Say which cells hold any lesion pixel.

    Args:
        mask: (B, 1, H, W), above 0 where lesion was added.
        patch_size: side P of a cell in pixels.

    Returns:
        (B, L) bool, row-major.
    """
    return F.max_pool2d((mask > 0).float(), patch_size).flatten(1) > 0


class AFiRe(Method):
    """AFiRe (Liu et al., AAAI 2025, arXiv 2504.10972), in its published and in its grid-shifted form.

    With ``shift`` 0 this is the published method: the student sees the whole lesioned twin, the teacher the whole
    normal image, and token l always shows cell l. With ``shift`` s above 0 (this project's form, made so that the
    structure term cannot be solved without looking at the image) both see crops of a canvas that is s cells larger
    each way, at offsets of their own; prototypes belong to canvas cells and one head layer is shared by all cells.

    Args:
        encoder: the student's encoder; the teacher starts as a copy.
        head: per-cell layers for ``shift`` 0, a shared layer (``cells=None``) otherwise.
        decoder: restoration decoder on the encoder's grid.
        prototypes: bank with (h + s)(w + s) cells.
        token_loss: structure and category terms.
        restoration_loss: restoration term.
        lesion: synthesis of lesions on the device; None for the ablation without lesions (the twin is the image, no
            cell is abnormal, the category term is zero and restoration is plain autoencoding).
        shift: s, in cells.
        structure_weight: weight of the structure term in the total.
        restoration_weight: weight of the restoration term in the total.

    Raises:
        AfireError: if the parts do not fit one another.
    """

    student: AFiReStudent
    teacher: AFiReTeacher
    prototypes: PrototypeBank
    lesion: SyntheticLesionMaskBatch | None

    def __init__(
        self,
        encoder: ViTEncoder,
        head: TokenHead,
        decoder: AnomalyRestorationDecoder,
        prototypes: PrototypeBank,
        token_loss: TokenContrastiveLoss,
        restoration_loss: RestorationLoss,
        lesion: SyntheticLesionMaskBatch | None,
        shift: int = 0,
        structure_weight: float = 1.0,
        restoration_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid_shift = GridShift(encoder.grid, encoder.patch_size, shift)
        self._check_parts(encoder, head, decoder, prototypes, self.grid_shift)
        self.student = AFiReStudent(encoder, head, decoder)
        self.teacher = AFiReTeacher(copy.deepcopy(encoder), copy.deepcopy(head)).requires_grad_(False)
        self.prototypes = prototypes
        self.token_loss = token_loss
        self.restoration_loss = restoration_loss
        self.lesion = lesion
        self.draws = (lesion.draws if lesion is not None else 0) + self.grid_shift.draws
        self.loss_weights = {
            "structure": structure_weight,
            "category": token_loss.category_weight,
            "restoration": restoration_weight,
        }

    @staticmethod
    def _check_parts(
        encoder: ViTEncoder,
        head: TokenHead,
        decoder: AnomalyRestorationDecoder,
        prototypes: PrototypeBank,
        grid_shift: GridShift,
    ) -> None:
        h, w = encoder.grid
        if decoder.grid != encoder.grid or decoder.patch_size != encoder.patch_size:
            raise AfireError(
                f"decoder grid {decoder.grid} at patch {decoder.patch_size} differs from the encoder's {encoder.grid} "
                f"at patch {encoder.patch_size}"
            )
        expected = None if grid_shift.shift else h * w
        if head.cells != expected:
            raise AfireError(
                f"with shift {grid_shift.shift} the head needs cells={expected} "
                f"({'one layer shared by all cells' if expected is None else 'a layer per cell'}), got {head.cells}"
            )
        if prototypes.cells != grid_shift.canvas_cells:
            raise AfireError(
                f"a {h} x {w} grid with shift {grid_shift.shift} has {grid_shift.canvas_cells} canvas cells, "
                f"the prototype bank has {prototypes.cells}"
            )

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the method wants."""
        return self.grid_shift.canvas_size

    @property
    def export_encoder(self) -> ViTEncoder:
        """The teacher's encoder, as the paper fine-tunes it."""
        return self.teacher.encoder

    @property
    def export_decoder(self) -> AnomalyRestorationDecoder:
        """The restoration decoder, on the student's encoder."""
        return self.student.decoder

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """Give the per-cell (or shared) last layer of the student's head."""
        return [self.student.head.weight]

    def views(self, images: Tensor, uniforms: Tensor) -> AFiReViews:
        """Make what student and teacher see in one step.

        Args:
            images: (B, C, Hc, Wc) in 0…1.
            uniforms: (B, draws) in 0…1.

        Raises:
            AfireError: if the images have another size than the canvas.
        """
        if tuple(images.shape[2:]) != self.canvas_size:
            raise AfireError(
                f"images must be {self.canvas_size[0]} x {self.canvas_size[1]} pixels (grid plus shift), "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        lesion_draws, shift_draws = uniforms.tensor_split([uniforms.shape[1] - self.grid_shift.draws], dim=1)
        clean, normal, cells, teacher_cells = images, images, None, None
        if self.grid_shift.shift:
            student, teacher = self.grid_shift.offsets(shift_draws)
            clean, normal = self.grid_shift.crop(images, student), self.grid_shift.crop(images, teacher)
            cells, teacher_cells = self.grid_shift.cells(student), self.grid_shift.cells(teacher)
        twin, mask = clean, torch.zeros_like(clean[:, :1])
        if self.lesion is not None:
            twin, mask = self.lesion(clean, lesion_draws)
        abnormal = abnormal_cells(mask, self.grid_shift.patch_size)
        return AFiReViews(twin, clean, normal, mask, abnormal, cells, teacher_cells)

    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute structure, category and restoration losses of one step (see :class:`Method`)."""
        with torch.no_grad():
            v = self.views(images, uniforms)
            teacher_logits = self.teacher_forward(v.normal)
            self.prototypes.update(teacher_logits, v.teacher_cells, replace=first_epoch)
            assignment = self.prototypes.assignment()
        student_logits, restored = self.student_forward(v.twin, v.abnormal)
        target = self.export_encoder.normalise(v.clean)
        terms = self.token_loss(student_logits, assignment, v.abnormal, v.cells)
        restoration = self.restoration_loss(restored, target, v.abnormal, self.grid_shift.grid)
        return {"structure": terms.structure, "category": terms.category, "restoration": restoration}

    @torch.no_grad()
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure collapse and the position shortcut (see :func:`measure_health`)."""
        return measure_health(self, images, uniforms)

    @torch.no_grad()
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Show what the method does to images, each picture (B, 1, H, W) in 0…1.

        Returns:
            The normal ``image``, its lesioned ``twin``, the lesion ``mask``, the whole ``restoration``, and
            ``repaired``: the twin with its abnormal cells, and only these, taken from the restoration.
        """
        v = self.views(images, uniforms)
        _, restored = self.student(v.twin, v.abnormal)
        restored = self.export_encoder.denormalise(restored.float()).clamp(0, 1)
        h, w = self.grid_shift.grid
        hidden = F.interpolate(v.abnormal.view(-1, 1, h, w).float(), scale_factor=self.grid_shift.patch_size) > 0
        pictures = {
            "image": v.clean,
            "twin": v.twin,
            "mask": v.mask,
            "restoration": restored,
            "repaired": torch.where(hidden, restored, v.twin),
        }
        return {name: p.float().mean(1, keepdim=True) for name, p in pictures.items()}
