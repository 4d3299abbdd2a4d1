"""AFiRe: anatomy-driven pre-training with synthetic lesions, spatial prototypes and restoration."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.losses import RestorationLoss, SelfDistillationLoss, TokenContrastiveLoss, TokenMatchLoss
from afire_monai.losses.latent import koleo_loss, latent_restoration_loss
from afire_monai.losses.token_match import teacher_tokens
from afire_monai.methods.base import Method
from afire_monai.methods.grid_shift import GridShift
from afire_monai.methods.health import measure_health
from afire_monai.networks import AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTEncoder
from afire_monai.transforms import ExposureChange, SyntheticLesionMaskd
from afire_monai.transforms.anatomy import anatomy_of
from afire_monai.transforms.lesion import centers_in_pixels, lungs_of


class AFiReViews(NamedTuple):
    """Inputs of student and teacher in one step; images (B, C, H, W) in 0…1."""

    #: the student's crop with lesions
    twin: Tensor
    #: the student's crop without lesions: the target of the restoration
    clean: Tensor
    #: the teacher's crop, without lesions
    normal: Tensor
    #: (B, 1, H, W), 1 where a lesion was added
    mask: Tensor
    #: (B, L) bool, cells with lesion
    abnormal: Tensor
    #: (B, L) bool, cells with too little lesion to be abnormal, which do not count as normal either
    ambiguous: Tensor
    #: (B, L) int64, canvas cell of each student token; None in the published form
    cells: Tensor | None
    #: (B, L) int64, canvas cell of each teacher token; None in the published form
    teacher_cells: Tensor | None
    #: (B, 2) int64, rows and columns of cells from the teacher's crop to the student's
    offset: Tensor


class AFiReStudent(nn.Module):
    """Encoder, token head and restoration decoder, called once a step; heads for this project's terms if wanted."""

    encoder: ViTEncoder
    head: TokenHead
    decoder: AnomalyRestorationDecoder

    def __init__(
        self,
        encoder: ViTEncoder,
        head: TokenHead,
        decoder: AnomalyRestorationDecoder,
        class_head: TokenHead | None = None,
        lesion_head: nn.Linear | None = None,
        latent_head: nn.Linear | None = None,
        koleo: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.decoder = decoder
        self.class_head = class_head
        self.lesion_head = lesion_head
        self.latent_head = latent_head
        self.koleo = koleo

    def forward(self, twin: Tensor, abnormal: Tensor) -> tuple[Tensor, ...]:
        """Return token logits (B, L, K) and the restored image (B, C, H, W) in normalised units.

        What the optional terms need follows, as far as they are there: the class head's logits (B, 1, C), the lesion
        head's (B, 1 + L), class token first, the latent head's tokens (B, L, D), and the class token (B, D) for KoLeo.
        """
        tokens = self.encoder(twin)
        features = self.decoder.features(tokens, abnormal)
        found: list[Tensor] = [self.head(tokens[:, 1:]), self.decoder.pixels(features)]
        if self.class_head is not None:
            found.append(self.class_head(tokens[:, :1]))
        if self.lesion_head is not None:
            found.append(self.lesion_head(tokens)[..., 0])
        if self.latent_head is not None:
            found.append(self.latent_head(features))
        if self.koleo:
            found.append(tokens[:, 0])
        return tuple(found)


class AFiReTeacher(nn.Module):
    """Encoder and token head; a moving average of the student's."""

    encoder: ViTEncoder
    head: TokenHead

    def __init__(
        self, encoder: ViTEncoder, head: TokenHead, class_head: TokenHead | None = None, latent: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.class_head = class_head
        self.latent = latent

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return token logits (B, L, K); with a class head its logits (B, 1, C), for a latent head tokens (B, L, D)."""
        tokens = self.encoder(images)
        found: list[Tensor] = [self.head(tokens[:, 1:])]
        if self.class_head is not None:
            found.append(self.class_head(tokens[:, :1]))
        if self.latent:
            found.append(tokens[:, 1:])
        return tuple(found)


def abnormal_cells(twin: Tensor, clean: Tensor, mask: Tensor, patch_size: int, change: float) -> tuple[Tensor, Tensor]:
    """Return which cells hold a lesion, and which hold too little of one to count as either.

    Args:
        twin: (B, C, H, W) in 0…1.
        clean: (B, C, H, W) without the lesion.
        mask: (B, 1, H, W), above 0 where a lesion was added.
        patch_size: side P of a cell in pixels.
        change: least mean change of an abnormal cell, in grey levels of 0…1; 0 (the published rule) for any pixel.

    Returns:
        Abnormal and ambiguous cells, each (B, L) bool, row-major.
    """
    touched = F.max_pool2d((mask > 0).float(), patch_size).flatten(1) > 0
    if not change:
        return touched, torch.zeros_like(touched)
    mean = F.avg_pool2d((twin - clean).abs().mean(1, keepdim=True), patch_size).flatten(1)
    abnormal = touched & (mean >= change)
    return abnormal, touched & ~abnormal


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
        lesion: synthesis of lesions on the device, from ``image`` to ``twin`` and ``mask``; None for the ablation
            without lesions (the twin is the image, no cell is abnormal, the category term is zero and restoration is
            plain autoencoding).
        shift: s, in cells.
        structure_weight: weight of the structure term in the total.
        restoration_weight: weight of the restoration term in the total.
        abnormal_change: least mean change of grey levels, 0…1, that makes a cell abnormal; a cell that a lesion touches
            but changes by less is in neither contrastive term. 0: any pixel, as published.
        exposure: changes the exposure of student and teacher, each by draws of its own; None for equal grey levels, as
            published. The restoration target has the student's exposure.
        match_loss: matching term; None for none, as published.
        match_weight: weight of the matching term.
        class_head: projects the class token, for DINO's loss between the twin's and the normal image's; None for none,
            as published.
        class_loss: that loss, of the head's width.
        class_weight: weight of the class term.
        lesion_weight: weight of the lesion term: a linear layer on the student's tokens predicts each cell's share
            of lesion pixels, and from the class token whether there is any, by binary cross-entropy; cells and image
            count equally. 0 for none, as published.
        latent_weight: weight of predicting, for lesioned cells, the teacher's tokens of the normal image from the
            decoder's features (see :func:`~afire_monai.losses.latent.latent_restoration_loss`). 0 for none.
        koleo_weight: weight of spreading the student's class tokens (:func:`~afire_monai.losses.latent.koleo_loss`).
            0 for none.
        populations: for each image of the training data, which of its cells' prototypes it has; None if that is not
            told by the data, as published.

    Raises:
        AfireError: if the parts do not fit one another.
    """

    student: AFiReStudent
    teacher: AFiReTeacher
    prototypes: PrototypeBank
    token_loss: TokenContrastiveLoss
    restoration_loss: RestorationLoss
    lesion: SyntheticLesionMaskd | None
    populations: Tensor | None

    def __init__(
        self,
        encoder: ViTEncoder,
        head: TokenHead,
        decoder: AnomalyRestorationDecoder,
        prototypes: PrototypeBank,
        token_loss: TokenContrastiveLoss,
        restoration_loss: RestorationLoss,
        lesion: SyntheticLesionMaskd | None,
        shift: int = 0,
        structure_weight: float = 1.0,
        restoration_weight: float = 1.0,
        abnormal_change: float = 0.0,
        exposure: ExposureChange | None = None,
        match_loss: TokenMatchLoss | None = None,
        match_weight: float = 1.0,
        class_head: TokenHead | None = None,
        class_loss: SelfDistillationLoss | None = None,
        class_weight: float = 1.0,
        lesion_weight: float = 0.0,
        latent_weight: float = 0.0,
        koleo_weight: float = 0.0,
        populations: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("populations", None if populations is None else torch.tensor(populations), False)
        self.grid_shift = GridShift(encoder.grid, encoder.patch_size, shift)
        self.lung_shift = GridShift(encoder.grid, 4, shift)  # of lung maps with four samples a cell
        self._check_parts(encoder, head, decoder, prototypes, self.grid_shift)
        if populations is not None and max(populations) >= prototypes.per_cell:
            raise AfireError(f"{max(populations) + 1} populations, but {prototypes.per_cell} prototypes a cell")
        if (class_head is None) != (class_loss is None):
            raise AfireError("class_head and class_loss belong together: give both or neither")
        lesion_head = nn.Linear(encoder.embed_dim, 1) if lesion_weight else None
        latent_head = nn.Linear(decoder.config["dim"], encoder.embed_dim) if latent_weight else None
        self.student = AFiReStudent(encoder, head, decoder, class_head, lesion_head, latent_head, bool(koleo_weight))
        teacher = AFiReTeacher(*copy.deepcopy((encoder, head, class_head)), latent=bool(latent_weight))
        self.teacher = teacher.requires_grad_(False)
        self.prototypes = prototypes
        self.token_loss = token_loss
        self.restoration_loss = restoration_loss
        self.match_loss = match_loss
        self.class_loss = class_loss
        self.lesion = lesion
        self.exposure = exposure
        self.abnormal_change = abnormal_change
        parts = [lesion.draws if lesion is not None else 0, 2 * exposure.draws if exposure is not None else 0]
        self._draws = [*parts, self.grid_shift.draws]
        self.draws = sum(self._draws)
        self.loss_weights = {
            "structure": structure_weight,
            "category": token_loss.category_weight,
            "restoration": restoration_weight,
        }
        optional: dict[str, tuple[object, float]] = {
            "match": (match_loss, match_weight),
            "class": (class_loss, class_weight),
            "lesion": (lesion_head, lesion_weight),
            "latent": (latent_head, latent_weight),
            "koleo": (koleo_weight or None, koleo_weight),
        }
        self.loss_weights |= {name: weight for name, (part, weight) in optional.items() if part is not None}

    @staticmethod
    def _check_parts(
        encoder: ViTEncoder,
        head: TokenHead,
        decoder: AnomalyRestorationDecoder,
        prototypes: PrototypeBank,
        grid_shift: GridShift,
    ) -> None:
        h, w = encoder.grid
        decoder.refuse_other_grid(encoder)
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
        """Return the per-cell (or shared) last layer of the student's head."""
        return [self.student.head.weight]

    def views(self, images: Tensor, uniforms: Tensor, anatomy: Tensor | None = None) -> AFiReViews:
        """Make the inputs of student and teacher for one step.

        Args:
            images: (B, C, Hc, Wc) in 0…1.
            uniforms: (B, draws) in 0…1.
            anatomy: (B, 1026) of the images (see `Anatomy`); found on the CPU if not
                given, which waits for the device. In the grid-shifted form the lesions' texture comes from the place
                that was found in the canvas, moved inside the crop (this project's reading).

        Raises:
            AfireError: if the images have another size than the canvas.
        """
        if tuple(images.shape[2:]) != self.canvas_size:
            raise AfireError(
                f"images must be {self.canvas_size[0]} x {self.canvas_size[1]} pixels (grid plus shift), "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        lesion_draws, exposure_draws, shift_draws = uniforms.split(self._draws, dim=1)
        clean, normal, cells, teacher_cells = images, images, None, None
        offsets = torch.zeros(2, len(images), 2, dtype=torch.long, device=images.device)
        if self.grid_shift.shift:
            student, teacher = self.grid_shift.offsets(shift_draws)
            clean, normal = self.grid_shift.crop(images, student), self.grid_shift.crop(images, teacher)
            cells, teacher_cells = self.grid_shift.cells(student), self.grid_shift.cells(teacher)
            offsets = torch.stack([student, teacher])
        if self.exposure is not None:
            first, second = exposure_draws.chunk(2, dim=1)
            clean, normal = self.exposure(clean, first), self.exposure(normal, second)
        twin, mask = clean, torch.zeros_like(clean[:, :1])
        if self.lesion is not None:
            anatomy = anatomy_of(images) if anatomy is None else anatomy
            place = self._place(anatomy, offsets[0])
            lesioned = self.lesion({"image": clean, "uniforms": lesion_draws, **place})
            twin, mask = lesioned[self.lesion.twin_key], lesioned[self.lesion.mask_key]
        patch_size = self.grid_shift.patch_size
        abnormal, ambiguous = abnormal_cells(twin, clean, mask, patch_size, self.abnormal_change)
        offset = offsets[0] - offsets[1]
        return AFiReViews(twin, clean, normal, mask, abnormal, ambiguous, cells, teacher_cells, offset)

    def _place(self, anatomy: Tensor, offsets: Tensor) -> dict[Hashable, Tensor]:
        """Return texture centres (B, 2) in pixels of the crop and its part of the lung map (B, 1, 4 h, 4 w)."""
        centers = centers_in_pixels(anatomy, *self.canvas_size) - offsets * self.grid_shift.patch_size
        lungs = F.interpolate(lungs_of(anatomy), self.lung_shift.canvas_size, mode="bilinear", align_corners=False)
        return {"centers": centers, "lungs": self.lung_shift.crop(lungs, offsets)}

    def batch_losses(self, batch: dict[str, Tensor], uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the losses of one step from ``image`` and, as far as they are needed, ``anatomy`` and ``index``."""
        members = None if self.populations is None else self.populations[batch["index"]]
        return self.losses(batch["image"], uniforms, first_epoch, batch.get("anatomy"), members)

    def losses(
        self,
        images: Tensor,
        uniforms: Tensor,
        first_epoch: bool,
        anatomy: Tensor | None = None,
        members: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute structure, category and restoration losses of one step, and the optional ones (see :class:`Method`).

        Args:
            images: as for :meth:`views`, like ``uniforms`` and ``anatomy``.
            uniforms: (B, draws).
            first_epoch: whether prototypes forget the past.
            anatomy: (B, 1026).
            members: (B,) int64, which of its cells' prototypes each image has; None for the nearest.
        """
        with torch.no_grad():
            v = self.views(images, uniforms, anatomy)
            teacher_logits, *taught = self.teacher_forward(v.normal)
            self.prototypes.update(teacher_logits, v.teacher_cells, first_epoch, members)
            assignment = self.prototypes.assignment()
        student_logits, restored, *more = self.student_forward(v.twin, v.abnormal)
        target = self.export_encoder.normalise(v.clean)
        terms = self.token_loss(student_logits, assignment, v.abnormal, v.cells, v.ambiguous, members)
        restoration = self.restoration_loss(restored, target, v.abnormal, self.grid_shift.grid)
        losses = {"structure": terms.structure, "category": terms.category, "restoration": restoration}
        if self.match_loss is not None:
            losses["match"] = self._match(self.match_loss, v, student_logits, teacher_logits, members)
        # in the order in which student and teacher return them
        rest, shown = iter(more), iter(taught)
        if self.class_loss is not None:
            # as (views, images, width): the twin's view of the image against the teacher's of the normal one
            classes = next(shown).transpose(0, 1)
            losses["class"] = self.class_loss(next(rest).transpose(0, 1), classes, all_pairs=True)
            self.class_loss.update_center(classes)
        if "lesion" in self.loss_weights:
            losses["lesion"] = self._tell_lesions(next(rest).float(), v.mask)
        if "latent" in self.loss_weights:
            tokens, inside = teacher_tokens(next(shown), v.offset, self.grid_shift.grid)
            losses["latent"] = latent_restoration_loss(next(rest), tokens, inside & v.abnormal)
        if "koleo" in self.loss_weights:
            losses["koleo"] = koleo_loss(next(rest))
        return losses

    def _tell_lesions(self, logits: Tensor, mask: Tensor) -> Tensor:
        share = F.avg_pool2d(mask, self.grid_shift.patch_size).flatten(1)
        cells = F.binary_cross_entropy_with_logits(logits[:, 1:], share)
        return (cells + F.binary_cross_entropy_with_logits(logits[:, 0], mask.amax((1, 2, 3)))) / 2

    def _match(
        self, loss: TokenMatchLoss, v: AFiReViews, student: Tensor, teacher: Tensor, members: Tensor | None
    ) -> Tensor:
        shown, inside = teacher_tokens(teacher, v.offset, self.grid_shift.grid)
        prototypes = self.prototypes.of_tokens(shown, v.cells, members)
        return loss(student, shown, prototypes, inside & ~v.abnormal & ~v.ambiguous)

    @torch.no_grad()
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure collapse and the position shortcut (see :func:`measure_health`)."""
        return measure_health(self, images, uniforms)

    @torch.no_grad()
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Show how the method changes images, each picture (B, 1, H, W) in 0…1.

        Returns:
            The normal ``image``, its lesioned ``twin``, the lesion ``mask``, the whole ``restoration``, and
            ``repaired``: the twin with its abnormal cells, and only these, taken from the restoration.
        """
        v = self.views(images, uniforms)
        _, restored, *_ = self.student(v.twin, v.abnormal)
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
