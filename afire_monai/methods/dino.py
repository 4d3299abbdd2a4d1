"""DINO: self-distillation of whole pictures, a baseline without knowledge of anatomy."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.losses.self_distillation import SelfDistillationLoss
from afire_monai.methods.base import Method
from afire_monai.methods.health import feature_health
from afire_monai.networks import Encoder, TokenHead, ViTEncoder
from afire_monai.transforms import RandomViews


class DINOBranch(nn.Module):
    """Encoder and head of student or teacher: images of any sizes to outputs of their class tokens."""

    encoder: Encoder
    head: TokenHead

    def __init__(self, encoder: Encoder, head: TokenHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, *views: Tensor) -> tuple[Tensor]:
        """Return (V, B, K) for views (B, C, H, W), those of one size in one pass."""
        sizes = list(dict.fromkeys(view.shape[2:] for view in views))
        groups = [[view for view in views if view.shape[2:] == size] for size in sizes]
        tokens = [self.encoder(torch.cat(group))[:, 0].view(len(group), len(group[0]), -1) for group in groups]
        return (self.head(torch.cat(tokens)),)


class DINO(Method):
    """DINO (Caron et al., ICCV 2021, arXiv 2104.14294) with the shared encoder and AFiRe's token head.

    The head is the same as DINO's (three-layer MLP with GELU, L2 normalisation, one weight-normalised layer whose norm
    stays 1), on the class token.

    Args:
        encoder: the student's encoder; the teacher starts as a copy.
        head: head with one shared layer (``cells=None``).
        loss: cross-entropy with the centre.
        global_views: the large views, which the teacher sees as well; two in the paper, all of the encoder's size.
        local_views: smaller views for the student; None for none.

    Raises:
        AfireError: if the parts do not fit one another.
    """

    student: DINOBranch
    teacher: DINOBranch

    def __init__(
        self,
        encoder: Encoder,
        head: TokenHead,
        loss: SelfDistillationLoss,
        global_views: RandomViews,
        local_views: RandomViews | None = None,
    ) -> None:
        super().__init__()
        if head.cells is not None or head.out_dim != len(loss.center):
            raise AfireError(
                f"the head needs one shared layer (cells=None) of the loss's width {len(loss.center)}, got "
                f"cells={head.cells} and {head.out_dim}"
            )
        large = global_views.sizes
        small = local_views.sizes if local_views is not None else []
        if any(size != encoder.image_size for size in large):
            raise AfireError(f"global views must be {encoder.image_size} pixels, as the encoder; got {large}")
        patch, (rows, columns) = encoder.patch_size, encoder.image_size
        if any(height >= rows or width >= columns for height, width in small):
            raise AfireError(
                f"local views must be smaller than the encoder's {encoder.image_size} pixels, got {small}: "
                f"set local_size below image_size, to a multiple of the patch size {patch}, or local_views to 0"
            )
        for height, width in small:
            if height % patch or width % patch:
                raise AfireError(f"local_size {height} must be a multiple of the patch size {patch}")
            grid = encoder.grid_of(height, width)
            if isinstance(encoder, ViTEncoder):
                encoder.positions_of(grid)  # computed now, not in the step
        if len(large) + len(small) < 2:
            raise AfireError("at least two views are needed: one has nothing to agree with")
        self.student = DINOBranch(encoder, head)
        self.teacher = DINOBranch(copy.deepcopy(encoder), copy.deepcopy(head)).requires_grad_(False)
        self.loss = loss
        self.global_views = global_views
        self.local_views = local_views
        self.draws = global_views.draws + (local_views.draws if local_views is not None else 0)
        self.loss_weights = {"distillation": 1.0}

    @property
    def export_encoder(self) -> Encoder:
        """The teacher's encoder, as the paper evaluates it."""
        return self.teacher.encoder

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """Return the last layer of the student's head, frozen at the start as in the paper."""
        return [self.student.head.weight]

    def views(self, images: Tensor, uniforms: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Make global and local views (B, C, H, W) of images (B, C, Hc, Wc) in 0…1 from uniforms (B, draws)."""
        large = self.global_views(images, uniforms[:, : self.global_views.draws])
        if self.local_views is None:
            return large, []
        return large, self.local_views(images, uniforms[:, self.global_views.draws :])

    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the distillation loss of one step (see :class:`Method`); moves the centre afterwards."""
        with torch.no_grad():
            large, small = self.views(images, uniforms)
            (teacher,) = self.teacher_forward(*large)
        (student,) = self.student_forward(*large, *small)
        loss = self.loss(student, teacher)
        self.loss.update_center(teacher)
        return {"distillation": loss}

    @torch.no_grad()
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure collapse of features and of the head's outputs on normal images that training does not see.

        Returns:
            ``feature_std_ratio`` and ``effective_rank`` of whole pictures, ``validation_distillation``, and
            ``teacher_entropy``: mean entropy of the teacher's sharpened outputs over log K; DINO has collapsed if
            it is 1 or 0 for all images alike.
        """
        large, small = self.views(images, uniforms)
        (teacher,), (student,) = self.teacher(*large), self.student(*large, *small)
        target = ((teacher.float() - self.loss.center) / self.loss.teacher_temperature).softmax(-1)
        entropy = torch.special.entr(target).sum(-1).mean() / torch.tensor(float(teacher.shape[-1])).log()
        whole = F.interpolate(images, size=self.export_encoder.image_size, mode="area")
        return {
            **feature_health(self.export_encoder, whole),
            "validation_distillation": self.loss(student, teacher).item(),
            "teacher_entropy": entropy.item(),
        }

    @torch.no_grad()
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Show the views, (B, 1, H, W) each; local ones enlarged without smoothing."""
        large, small = self.views(images, uniforms)
        size = self.export_encoder.image_size
        pictures = {f"global {i + 1}": view for i, view in enumerate(large)}
        pictures |= {f"local {i + 1}": F.interpolate(view, size=size) for i, view in enumerate(small)}
        return {name: picture.float().mean(1, keepdim=True) for name, picture in pictures.items()}
