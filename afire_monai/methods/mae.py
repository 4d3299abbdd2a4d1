"""MAE: masked autoencoding, a baseline without knowledge of anatomy."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.losses.masked_patches import MaskedPatchLoss
from afire_monai.methods.base import Method
from afire_monai.methods.health import feature_health
from afire_monai.networks import AnomalyRestorationDecoder, ViTEncoder
from afire_monai.transforms import ViewAugment


class MAEViews(NamedTuple):
    """The visible and the hidden patches of one step."""

    #: (B, C, H, W) in 0…1
    image: Tensor
    #: (B, V) int64, places of the patches that the encoder sees, ascending
    visible: Tensor
    #: (B, L) bool, the other patches
    masked: Tensor


class MAEStudent(nn.Module):
    """Encoder of the visible patches, decoder of all."""

    encoder: ViTEncoder
    decoder: AnomalyRestorationDecoder

    def __init__(self, encoder: ViTEncoder, decoder: AnomalyRestorationDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor, visible: Tensor, masked: Tensor) -> tuple[Tensor]:
        """Return the reconstruction (B, C, H, W), in normalised units or those of normalised patches."""
        tokens = self.encoder(images, visible=visible)
        batch, _, dim = tokens.shape
        place = torch.cat([torch.zeros_like(visible[:, :1]), visible + 1], dim=1)[..., None].expand(-1, -1, dim)
        # the decoder puts its mask tokens where nothing was seen
        full = tokens.new_zeros(batch, 1 + masked.shape[1], dim).scatter(1, place, tokens)
        return (self.decoder(full, masked),)


class MAE(Method):
    """Masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377) with the shared encoder.

    The decoder is AFiRe's: its mask tokens are one for each cell, MAE's one for all (to which the fixed positions are
    added in both, so that neither can do what the other cannot).

    Args:
        encoder: the encoder to train.
        decoder: decoder on the encoder's grid.
        mask_ratio: share of the patches to hide; 0.75 in the paper.
        normalise: reconstruct each patch's normalised pixels. Without it the decoder gives grey levels, and is exported
            as a restorer for anomaly maps.
        view: augmentation of the images; None for none (the image is then the canvas).

    Raises:
        AfireError: if the parts do not fit one another, for an encoder that cannot leave patches out, or for a ratio
            that hides nothing or everything.
    """

    student: MAEStudent

    def __init__(
        self,
        encoder: ViTEncoder,
        decoder: AnomalyRestorationDecoder,
        mask_ratio: float = 0.75,
        normalise: bool = True,
        view: ViewAugment | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, ViTEncoder):
            raise AfireError(
                f"MAE leaves hidden patches out, which a {type(encoder).__name__} cannot: choose an encoder_preset "
                "that begins with vit_"
            )
        if encoder.config["stem"] != "patches":
            raise AfireError(
                f"MAE's encoder must not see hidden patches, and a stem of {encoder.config['stem']} looks into its "
                "neighbours: set stem to patches"
            )
        if not 0 <= mask_ratio <= 1:
            raise AfireError(f"mask_ratio is the share of the patches that is hidden, in 0…1; got {mask_ratio}")
        decoder.refuse_other_grid(encoder)
        if view is not None and view.output_size != encoder.image_size:
            raise AfireError(f"views of {view.output_size} pixels do not fit an encoder for {encoder.image_size}")
        self.cells = encoder.grid[0] * encoder.grid[1]
        self.seen = self.cells - round(self.cells * mask_ratio)
        if not 0 < self.seen < self.cells:
            raise AfireError(
                f"mask_ratio {mask_ratio} leaves {self.seen} of {self.cells} patches; some must be hidden, some seen: "
                "change mask_ratio, or have more patches (a larger image_size, a smaller patch_size)"
            )
        self.student = MAEStudent(encoder, decoder)
        self.loss = MaskedPatchLoss(encoder.patch_size, normalise)
        self.view = view
        self.draws = self.cells + (view.draws if view is not None else 0)
        self.loss_weights = {"reconstruction": 1.0}

    @property
    def export_encoder(self) -> ViTEncoder:
        """The encoder that was trained."""
        return self.student.encoder

    @property
    def export_decoder(self) -> AnomalyRestorationDecoder | None:
        """The decoder, if it gives grey levels."""
        return None if self.loss.normalise else self.student.decoder

    def views(self, images: Tensor, uniforms: Tensor) -> MAEViews:
        """Augment images and choose the hidden patches.

        Raises AfireError if there is no view and the images have another size than the encoder's.
        """
        if self.view is not None:
            images = self.view(images, uniforms[:, self.cells :])
        if tuple(images.shape[2:]) != self.canvas_size:
            raise AfireError(f"images must be {self.canvas_size} pixels, got {tuple(images.shape[2:])}")
        visible = uniforms[:, : self.cells].argsort(1)[:, : self.seen].sort(1).values
        masked = torch.ones(len(images), self.cells, dtype=torch.bool, device=images.device)
        return MAEViews(images, visible, masked.scatter(1, visible, False))

    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the reconstruction loss of one step (see :class:`Method`)."""
        v = self.views(images, uniforms)
        (reconstructed,) = self.student_forward(v.image, v.visible, v.masked)
        return {"reconstruction": self.loss(reconstructed, self.export_encoder.normalise(v.image), v.masked)}

    @torch.no_grad()
    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Measure collapse, and the reconstruction loss on normal images that training does not see."""
        v = self.views(images, uniforms)
        (reconstructed,) = self.student(v.image, v.visible, v.masked)
        loss = self.loss(reconstructed, self.export_encoder.normalise(v.image), v.masked)
        return {**feature_health(self.export_encoder, v.image), "validation_reconstruction": loss.item()}

    @torch.no_grad()
    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Show the image, its visible patches, and these with the reconstruction of the others.

        With normalised patches, the reconstruction is shown with the mean and spread that each patch really has.
        """
        v = self.views(images, uniforms)
        (reconstructed,) = self.student(v.image, v.visible, v.masked)
        target = self.export_encoder.normalise(v.image)
        restored = self.export_encoder.denormalise(self.loss.grey_levels(reconstructed, target)).clamp(0, 1)
        masked = v.masked.view(-1, 1, *self.export_encoder.grid).float()
        hidden = F.interpolate(masked, scale_factor=self.loss.patch_size) > 0
        pictures = {
            "image": v.image,
            "seen": torch.where(hidden, 0.5, v.image),
            "reconstruction": torch.where(hidden, restored, v.image),
        }
        return {name: picture.float().mean(1, keepdim=True) for name, picture in pictures.items()}
