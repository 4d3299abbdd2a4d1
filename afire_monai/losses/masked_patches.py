"""Reconstruction of masked patches, the loss of a masked autoencoder."""

from __future__ import annotations

from torch import Tensor, nn

from afire_monai.core.distributed import share_of_mean
from afire_monai.core.errors import AfireError

EPS = 1e-6  # added to the variance, so that a patch of one grey level gives zeros


def patch_statistics(images: Tensor, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches, and mean and deviation of each over its pixels and channels.

    Args:
        images: (B, C, h·P, w·P).
        patch_size: side P in pixels.

    Returns:
        (B, C, h, P, w, P), and twice (B, 1, h, 1, w, 1).
    """
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    variance = patches.var((1, 3, 5), keepdim=True)
    return patches, patches.mean((1, 3, 5), keepdim=True), (variance + EPS).sqrt()


class MaskedPatchLoss(nn.Module):
    """Mean squared error over masked patches only (MAE, He et al., CVPR 2022, §3).

    Args:
        patch_size: side P of a patch in pixels.
        normalise: compare with each patch's own normalised pixels (MAE's better-performing form).

    Example:
        >>> import torch
        >>> images = torch.ones(1, 1, 4, 4)
        >>> images[..., 2:] = 3  # right half; no masked patch lies there
        >>> masked = torch.tensor([[True, False, True, False]])
        >>> MaskedPatchLoss(patch_size=2, normalise=False)(torch.zeros(1, 1, 4, 4), images, masked).item()
        1.0
    """

    def __init__(self, patch_size: int, normalise: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.normalise = normalise

    def target(self, images: Tensor) -> Tensor:
        """Return the reconstruction target of images (B, C, H, W) in the encoder's normalised units."""
        if not self.normalise:
            return images.float()
        patches, mean, deviation = patch_statistics(images.float(), self.patch_size)
        return ((patches - mean) / deviation).view_as(images)

    def grey_levels(self, reconstructed: Tensor, images: Tensor) -> Tensor:
        """Undo :meth:`target`: return a reconstruction of images (B, C, H, W) in the encoder's normalised units."""
        if not self.normalise:
            return reconstructed.float()
        patches, mean, deviation = patch_statistics(images.float(), self.patch_size)
        return (reconstructed.float().view_as(patches) * deviation + mean).view_as(images)

    def forward(self, reconstructed: Tensor, images: Tensor, masked: Tensor) -> Tensor:
        """Return the loss, a scalar; averaged over processes it is the loss of the global batch.

        Args:
            reconstructed: (B, C, H, W) of the decoder.
            images: (B, C, H, W) in the encoder's normalised units.
            masked: (B, L) bool, row by row; at least one patch of the global batch is masked.

        Raises:
            AfireError: for shapes that do not fit one another.
        """
        b, _, height, width = images.shape
        h, w = height // self.patch_size, width // self.patch_size
        whole = (height, width) == (h * self.patch_size, w * self.patch_size)
        if reconstructed.shape != images.shape or masked.shape != (b, h * w) or not whole:
            raise AfireError(
                f"reconstructed {tuple(reconstructed.shape)}, images {tuple(images.shape)} and masked "
                f"{tuple(masked.shape)} do not fit a grid of {h} x {w} patches of {self.patch_size} pixels"
            )
        error = (reconstructed.float() - self.target(images)).square().mean(1)
        per_patch = error.view(b, h, self.patch_size, w, self.patch_size).mean((2, 4)).flatten(1)
        weight = masked.float()
        return share_of_mean((per_patch * weight).sum(), weight.sum())
