"""Random changes of a batch of training pictures, on whatever device the batch is."""

from typing import Final

import torch
from kornia.augmentation import RandomAffine, RandomHorizontalFlip, RandomVerticalFlip
from torch import Tensor, nn

from training.config import AugmentConfig

# Rows: unit optical densities of haematoxylin, eosin and DAB in red, green and blue
# (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291-299). Jenner-Giemsa's azure and eosin
# dyes lie close enough to the first two for a jitter.
_STAINS: Final = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Below this the picture is the black that stands around a segmented cell.
_BACKGROUND: Final = 1 / 255


class Augment(nn.Module):
    """Mirror, rotate, shift, zoom and stain each picture of a batch by itself.

    Reads PyTorch's global random state, which the run seeds anew at every step.
    """

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self._stain = config.stain
        steps: list[nn.Module] = []
        if config.flip:
            steps += [RandomHorizontalFlip(p=config.flip), RandomVerticalFlip(p=config.flip)]
        if config.rotate_deg or config.shift or config.zoom:
            steps.append(
                RandomAffine(
                    degrees=config.rotate_deg,
                    translate=(config.shift, config.shift),
                    scale=(1 - config.zoom, 1 + config.zoom),
                    p=1.0,
                )
            )
        self._geometry = nn.Sequential(*steps)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Change pictures of shape ``(batch, 3, size, size)``, 0..255; the range stays."""
        changed: Tensor = self._geometry(images.float() / 255)
        if self._stain:
            changed = jitter_stain(changed, self._stain)
        return changed * 255


def jitter_stain(images: Tensor, scale: float) -> Tensor:
    """Multiply each stain's optical density by its own random factor; black stays black.

    After Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.

    Args:
        images: Shape ``(batch, 3, height, width)``, 0..1.
        scale: Standard deviation of the factor, around 1.

    Returns:
        Pictures of the same shape and range.
    """
    stains = torch.tensor(_STAINS, device=images.device)
    stains = stains / stains.norm(dim=1, keepdim=True)
    factors = 1 + scale * torch.randn(len(images), 3, 1, device=images.device)
    # density = concentrations @ stains, so one 3x3 matrix a picture does the whole change.
    change = torch.linalg.inv(stains) @ (factors * stains)
    cell = images.amax(dim=1, keepdim=True) > _BACKGROUND
    density = -torch.log(images.clamp_min(_BACKGROUND))
    changed = torch.einsum("bchw,bcd->bdhw", density, change)
    return torch.where(cell, torch.exp(-changed).clamp(0, 1), images)
