"""MLVICX: variance, invariance and covariance of two views of a radiograph, of the whole and of its regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.distributed import world_size
from afire_monai.core.errors import AfireError
from afire_monai.losses.vicreg import VICRegLoss
from afire_monai.methods.base import Method
from afire_monai.methods.health import feature_health
from afire_monai.networks import Encoder
from afire_monai.networks.blocks import SyncedBatchNorm
from afire_monai.networks.heads import DenseBranch, ProjectionMLP
from afire_monai.transforms import RandomViews


class MLVICXNetwork(nn.Module):
    """The trained networks: encoder, dense branch and two projectors.

    Args:
        encoder: encoder that returns the maps.
        dense: branch that combines the maps.
        projector_dim: width of both projectors, 4096 in the paper.
        projector_layers: number of layers of both projectors, 3 in the paper.
    """

    def __init__(
        self, encoder: Encoder, dense: DenseBranch, projector_dim: int = 4096, projector_layers: int = 3
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense = dense
        # every parameter is made here, before an optimiser looks for them
        self.global_projector, self.dense_projector = (
            ProjectionMLP(dim, projector_dim, projector_dim, projector_layers, SyncedBatchNorm, last_bias=False)
            for dim in (encoder.feature_maps[-1].channels, dense.out_dim)
        )

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Embed views (B, C, H, W) one after the other: global, then dense embedding (B, projector_dim) of each.

        Batch norm sees each view by itself, as in VICReg.
        """
        embeddings = []
        for view in views:
            maps = self.encoder.pyramid(view)
            embeddings += [self.global_projector(maps[-1].mean((2, 3))), self.dense_projector(self.dense(maps))]
        return tuple(embeddings)


class MLVICX(Method):
    """Multi-level VICReg for chest radiographs (Singh et al., IEEE JBHI 2024, arXiv 2403.11504). No teacher.

    Args:
        student: encoder and both branches.
        views: maker of two views, each of the encoder's image size.
        canvas_size: height and width in pixels of the pictures that views are cut out of.
        loss: VICReg's terms.
        invariance_weight: weight of the invariance term; 25 in the paper.
        variance_weight: weight of the variance term; 25 in the paper.
        covariance_weight: weight of the covariance term; 1 in the paper.
        dense_weight: factor of the dense branch's three terms against the global branch's; 1 in the paper.

    Raises:
        AfireError: if there are not two views of the encoder's image size.
    """

    student: MLVICXNetwork

    def __init__(
        self,
        student: MLVICXNetwork,
        views: RandomViews,
        canvas_size: tuple[int, int],
        loss: VICRegLoss | None = None,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        dense_weight: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [view.output_size for view in views.views]
        if sizes != [student.encoder.image_size] * 2:
            raise AfireError(f"MLVICX compares two views of {student.encoder.image_size} pixels, got {sizes}")
        self.student = student
        self.views = views
        self.loss = loss if loss is not None else VICRegLoss()
        self._canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        self.draws = views.draws
        weights = {"invariance": invariance_weight, "variance": variance_weight, "covariance": covariance_weight}
        self.loss_weights = {
            f"{branch}_{name}": weight * scale
            for branch, scale in (("global", 1.0), ("dense", dense_weight))
            for name, weight in weights.items()
        }

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that views are cut out of."""
        return self._canvas_size

    @property
    def export_encoder(self) -> Encoder:
        """The encoder with its context bottlenecks; branches are left behind, as in the paper."""
        return self.student.encoder

    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute VICReg's terms of both branches in one step (see :class:`Method`).

        Raises AfireError for a single image over all processes.
        """
        if len(images) * world_size() < 2:
            raise AfireError("MLVICX compares images with each other: set batch_size to 2 or more, better 32")
        first, second = self.views(images, uniforms)
        return self._terms(*self.student_forward(first, second))

    def _terms(self, global_a: Tensor, dense_a: Tensor, global_b: Tensor, dense_b: Tensor) -> dict[str, Tensor]:
        pairs = {"global": self.loss(global_a, global_b), "dense": self.loss(dense_a, dense_b)}
        return {f"{branch}_{name}": term for branch, terms in pairs.items() for name, term in terms._asdict().items()}

    @torch.no_grad()
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure collapse of features, and the losses, on normal images that training does not see.

        Returns:
            ``feature_std_ratio`` and ``effective_rank`` of whole pictures, and ``validation_vicreg``: the weighted sum
            of the terms, with the running statistics of batch norm; comparable between epochs of one run.
        """
        terms = self._terms(*self.student(*self.views(images, uniforms)))
        whole = F.interpolate(images, size=self.export_encoder.image_size, mode="area")
        total = sum(terms[name].item() * weight for name, weight in self.loss_weights.items())
        return {**feature_health(self.export_encoder, whole), "validation_vicreg": total}

    @torch.no_grad()
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Show the picture, both views, and where the context bottlenecks look; each (B, 1, H, W) in 0…1.

        Returns:
            ``image``, ``first``, ``second``, and ``context``: mean over channels of the first view's last map, from
            the least (black) to the most (white) of each picture.
        """
        first, second = self.views(images, uniforms)
        size = self.export_encoder.image_size
        seen = self.student.encoder.pyramid(first)[-1].float().mean(1, keepdim=True)
        low, high = seen.amin((2, 3), keepdim=True), seen.amax((2, 3), keepdim=True)
        context = F.interpolate((seen - low) / (high - low).clamp(min=1e-6), size=size)
        pictures = {"image": F.interpolate(images, size=size, mode="area"), "first": first, "second": second}
        return {**{name: p.float().mean(1, keepdim=True) for name, p in pictures.items()}, "context": context}
