"""PEAC: patch order, patch appearance, and agreement of two views that overlap on one cell grid."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.losses.peac import PEACProjections, global_loss, local_loss, order_loss
from afire_monai.methods.base import Method
from afire_monai.methods.grid_shift import GridShift
from afire_monai.methods.health import feature_health
from afire_monai.networks.encoder_base import Encoder
from afire_monai.networks.heads import PatchAppearanceHead, ProjectionMLP
from afire_monai.networks.prototypes import match_cells
from afire_monai.transforms.perturb import AppearancePerturbation, permute_patches


class PEACOutput(NamedTuple):
    """Outputs of the student in one step, for B pairs of views."""

    #: (B, L, L) logits of the patch that each place of view 1 shows, the last dimension over patches
    order: Tensor
    #: (B, C, H, W) view 1 as before the change, in the encoder's normalised units
    restored: Tensor
    #: of both views
    global_first: Tensor
    global_second: Tensor
    local_first: Tensor
    local_second: Tensor

    @property
    def projections(self) -> PEACProjections:
        """The projections alone."""
        return PEACProjections(*self[2:])


class PEACProjector(nn.Module):
    """Encoder and both projectors, the common part of student and teacher."""

    encoder: Encoder
    global_projector: ProjectionMLP
    local_projector: ProjectionMLP

    def __init__(self, encoder: Encoder, global_projector: ProjectionMLP, local_projector: ProjectionMLP) -> None:
        super().__init__()
        self.encoder = encoder
        self.global_projector = global_projector
        self.local_projector = local_projector

    def tokens(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the patch tokens (2B, L, D) of B first and B second views (B, C, H, W)."""
        return self.encoder(torch.cat([first, second]))[:, 1:]

    def project(self, tokens: Tensor) -> PEACProjections:
        """Project the result of :meth:`tokens`."""
        global_first, global_second = self.global_projector(tokens.mean(1)).chunk(2)
        return PEACProjections(global_first, global_second, *self.local_projector(tokens).chunk(2))


class PEACTeacher(PEACProjector):
    """A moving average of the student's encoder and projectors."""

    def forward(self, first: Tensor, second: Tensor) -> PEACProjections:
        """Return the projections of both views (B, C, H, W)."""
        return self.project(self.tokens(first, second))


class PEACStudent(PEACProjector):
    """Encoder, both projectors (and predictors), and the heads of order and appearance; called once a step."""

    order_head: nn.Linear
    appearance_head: PatchAppearanceHead

    def __init__(
        self,
        encoder: Encoder,
        global_projector: ProjectionMLP,
        local_projector: ProjectionMLP,
        order_head: nn.Linear,
        appearance_head: PatchAppearanceHead,
        predictors: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__(encoder, global_projector, local_projector)
        self.order_head = order_head
        self.appearance_head = appearance_head
        self.global_predictor, self.local_predictor = predictors or (nn.Identity(), nn.Identity())

    def forward(self, first: Tensor, second: Tensor) -> PEACOutput:
        """Look at both views (B, C, H, W)."""
        tokens = self.tokens(first, second)
        shown = tokens[: len(first)]
        p = self.project(tokens)
        whole = (self.global_predictor(x) for x in (p.global_first, p.global_second))
        each = (self.local_predictor(x) for x in (p.local_first, p.local_second))
        return PEACOutput(self.order_head(shown), self.appearance_head(shown), *whole, *each)


class PEAC(Method):
    """PEAC (Zhou et al., BMVC 2023, arXiv 2312.00335), with any encoder.

    Args:
        encoder: the student's encoder; the teacher starts as a copy.
        views: crops, perturbation and permutation, on the encoder's grid.
        projector_dim: width of the projectors of the mean patch token and of each patch token, three linear layers
            with layer norm and ReLU between; 8192 in the paper.
        predictor_dim: hidden width of predictors that map the student's projections before they are compared with the
            teacher's, as BYOL has them; 0 for none, as in the paper.
        order_weight: weight of the patch order term; 1 in the paper.
        restoration_weight: weight of the patch appearance term; 1 in the paper.
        global_weight: weight of the global term; 1e5 in the paper, for a projector 8192 wide.
        local_weight: weight of the local term; 1 in the paper.
        local_normalise: compare L2-normalised local projections; the release compares them as they are.

    Raises:
        AfireError: if the views have another grid than the encoder.
    """

    student: PEACStudent
    teacher: PEACTeacher

    def __init__(
        self,
        encoder: Encoder,
        views: OverlappingViews,
        projector_dim: int = 8192,
        predictor_dim: int = 0,
        order_weight: float = 1.0,
        restoration_weight: float = 1.0,
        global_weight: float = 1e5,
        local_weight: float = 1.0,
        local_normalise: bool = False,
    ) -> None:
        super().__init__()
        if (views.grid, views.patch_size) != (encoder.grid, encoder.patch_size):
            raise AfireError(
                f"views of {views.grid} cells of {views.patch_size} px do not fit the encoder's grid {encoder.grid} "
                f"of {encoder.patch_size} px"
            )
        dim, (h, w) = encoder.embed_dim, encoder.grid
        appearance = PatchAppearanceHead(dim, encoder.grid, encoder.patch_size, encoder.in_channels)
        whole, each = (ProjectionMLP(dim, projector_dim, projector_dim, 3, last_bias=False) for _ in range(2))
        self.views = views
        width = projector_dim, predictor_dim, projector_dim
        predictors = (ProjectionMLP(*width, layers=2), ProjectionMLP(*width, layers=2)) if predictor_dim else None
        self.student = PEACStudent(encoder, whole, each, nn.Linear(dim, h * w), appearance, predictors)
        self.teacher = PEACTeacher(copy.deepcopy(encoder), copy.deepcopy(whole), copy.deepcopy(each))
        self.teacher.requires_grad_(False)
        self.draws = views.draws
        self.local_normalise = local_normalise
        self.loss_weights = {
            "order": order_weight,
            "restoration": restoration_weight,
            "global": global_weight,
            "local": local_weight,
        }

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the method wants."""
        return self.views.canvas_size

    @property
    def export_encoder(self) -> Encoder:
        """The teacher's encoder."""
        return self.teacher.encoder

    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute order, restoration, global and local losses of one step (see :class:`Method`)."""
        with torch.no_grad():
            v = self.views(images, uniforms)
            teacher = self.teacher_forward(v.first, v.second)
        output = PEACOutput(*self.student_forward(v.first, v.second))
        return self._terms(v, output, teacher)

    def _terms(self, v: PEACViews, output: PEACOutput, teacher: PEACProjections) -> dict[str, Tensor]:
        valid = v.matched & v.kept[:, None]
        target = self.export_encoder.normalise(v.clean).float()
        return {
            "order": order_loss(output.order, v.order),
            "restoration": F.mse_loss(output.restored.float(), target),
            "global": global_loss(output.projections, teacher),
            "local": local_loss(output.projections, teacher, v.match, valid, self.local_normalise),
        }

    @torch.no_grad()
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure on unseen normal images whether the tasks are learnt and nothing has collapsed.

        Returns:
            ``feature_std_ratio`` and ``effective_rank`` of the teacher's encoder; ``validation_{order, restoration,
            global, local}`` (the terms, unweighted, a first view with its order kept and perturbed);
            ``validation_restoration_permuted``; ``order_permuted`` (share of patches of permuted views whose place
            is found; chance is 1/L; a network that uses positions alone gets no further); ``projection_spread``
            (standard deviation over images of the teacher's L2-normalised global projections, averaged over
            dimensions, times √G; near 0 is collapse of the projector); ``cells_found`` (share of matched cells
            whose most similar local projection in the other view, student's to teacher's, is the matched one).
        """
        kept = self.views(images, self.views.coins(uniforms, keep=True))
        mixed = self.views(images, self.views.coins(uniforms, keep=False))
        teacher = self.teacher(kept.first, kept.second)
        output = self.student(kept.first, kept.second)
        permuted = self.student(mixed.first, mixed.second)
        spread = (
            F.normalize(teacher.global_second.float(), dim=-1).std(0).mean() * teacher.global_second.shape[1] ** 0.5
        )
        terms = {f"validation_{name}": value.item() for name, value in self._terms(kept, output, teacher).items()}
        restored = F.mse_loss(permuted.restored.float(), self.export_encoder.normalise(mixed.clean).float())
        return {
            **feature_health(self.export_encoder, kept.second),
            **terms,
            "validation_restoration_permuted": restored.item(),
            "order_permuted": (permuted.order.argmax(-1) == mixed.order).float().mean().item(),
            "projection_spread": spread.item(),
            "cells_found": cells_found(output.local_first, teacher.local_second, kept.match, kept.matched).item(),
        }

    @torch.no_grad()
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Show both views, the second as it is, the first changed both ways and restored; each (B, 1, H, W) in 0…1."""
        kept = self.views(images, self.views.coins(uniforms, keep=True))
        mixed = self.views(images, self.views.coins(uniforms, keep=False))
        restored = [self.student(v.first, v.second).restored.float() for v in (kept, mixed)]
        undone, sorted_again = (self.export_encoder.denormalise(r).clamp(0, 1) for r in restored)
        pictures = {
            "view 1": kept.clean,
            "view 2": kept.second,
            "perturbed": kept.first,
            "restored": undone,
            "permuted": mixed.first,
            "restored from permuted": sorted_again,
        }
        return {name: p.float().mean(1, keepdim=True) for name, p in pictures.items()}


def cells_found(first: Tensor, second: Tensor, match: Tensor, matched: Tensor) -> Tensor:
    """Return the share of cells whose most like cell of the other view, by the cosine, is the one that matches.

    Args:
        first: (B, L, E) of view 1.
        second: (B, L, E) of view 2.
        match: (B, L) int64, the cell of view 2 that matches each cell of view 1.
        matched: (B, L) bool, whether there is one.

    Returns:
        Scalar; 0 if no cell is matched. Means over images and cells are subtracted first, because a part that all
        tokens share carries no information.
    """
    one, other = (F.normalize(x.float() - x.float().mean((0, 1)), dim=-1) for x in (first, second))
    right = (one @ other.transpose(1, 2)).argmax(-1) == match
    return (right & matched).sum() / matched.sum().clamp_min(1)


class PEACViews(NamedTuple):
    """Inputs of student and teacher in one step; images (B, C, H, W) in 0…1, cells in row-major order."""

    #: view 1 as the networks see it: perturbed in appearance, or with its patches permuted
    first: Tensor
    #: view 2, always plain
    second: Tensor
    #: view 1 before either change: the target of the restoration
    clean: Tensor
    #: (B, L) int64, the patch of view 1 that each place of ``first`` shows; 0…L-1 if the order is kept
    order: Tensor
    #: (B,) bool, whether view 1 keeps its order (and so is perturbed)
    kept: Tensor
    #: (B, L) int64, the cell of view 2 that shows the same place of the body as each cell of ``clean``
    match: Tensor
    #: (B, L) bool, whether there is such a cell; ``match`` holds an arbitrary cell if there is none
    matched: Tensor


class OverlappingViews(nn.Module):
    """Make PEAC's two views (arXiv 2312.00335): crops of a canvas on one cell grid at independent cell offsets.

    The canvas is one cell larger each way than crop and shift; the grid starts at a random whole pixel in that cell, as
    released. Nothing is resampled, so cells of the overlap hold equal pixels. The overlap has at least (h − s)(w − s)
    cells.

    Args:
        grid: rows and columns (h, w) of a view, in cells.
        patch_size: side P of a cell in pixels.
        shift: s, the largest offset of a view in cells; the paper has 4 for 14 x 14 cells.
        perturbation: perturbation of view 1 if its order is kept.
        keep_probability: probability that view 1 keeps its order; 0.5 in the paper.

    Raises:
        AfireError: for a shift that leaves no overlap, or a probability outside 0…1.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        patch_size: int,
        shift: int,
        perturbation: AppearancePerturbation,
        keep_probability: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= shift < min(grid):
            raise AfireError(
                f"shift must be from 0 to {min(grid) - 1} cells, so that two views of {grid[0]} x {grid[1]} cells "
                f"always overlap; got {shift}"
            )
        if not 0 <= keep_probability <= 1:
            raise AfireError(f"keep_probability must be in 0…1, got {keep_probability}")
        self.grid, self.patch_size, self.shift = grid, patch_size, shift
        self.cell_shift = GridShift(grid, patch_size, shift)
        # the same crops counted in pixels: a cell of one pixel, for offsets that are not a whole number of cells
        self.pixel_shift = GridShift((grid[0] * patch_size, grid[1] * patch_size), 1, (shift + 1) * patch_size)
        self.perturbation = perturbation
        self.keep_probability = keep_probability
        self.sizes = [2, 4, 1, grid[0] * grid[1], perturbation.draws]
        self.draws = sum(self.sizes)

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return self.pixel_shift.canvas_size

    def coins(self, uniforms: Tensor, keep: bool) -> Tensor:
        """Return uniforms (B, draws) with which every first view keeps its order, or none does."""
        coins = uniforms.clone()
        # beyond 0…1, so that the extreme probabilities cannot overrule it
        coins[:, self.sizes[0] + self.sizes[1]] = -1.0 if keep else 2.0
        return coins

    def forward(self, images: Tensor, uniforms: Tensor) -> PEACViews:
        """Make the views; AfireError if the images have another size than the canvas."""
        if tuple(images.shape[2:]) != self.canvas_size:
            raise AfireError(
                f"images must be {self.canvas_size[0]} x {self.canvas_size[1]} pixels (view, shift and one cell), "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        start, cells, coin, keys, changes = uniforms.split(self.sizes, dim=1)
        start = (start * self.patch_size).long().clamp_max(self.patch_size - 1)
        first_cell, second_cell = self.cell_shift.offsets(cells)
        clean = self.pixel_shift.crop(images, start + first_cell * self.patch_size)
        second = self.pixel_shift.crop(images, start + second_cell * self.patch_size)
        kept = coin[:, 0] < self.keep_probability
        order = torch.where(
            kept[:, None], torch.arange(keys.shape[1], device=keys.device), keys.argsort(stable=True, dim=1)
        )
        perturbed = self.perturbation(clean, changes).to(clean.dtype)
        shown = torch.where(kept[:, None, None, None], perturbed, clean)
        match, matched = match_cells(first_cell - second_cell, self.grid, self.grid)
        return PEACViews(permute_patches(shown, order, self.grid), second, clean, order, kept, match, matched)
