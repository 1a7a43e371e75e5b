"""Random changes of a batch of training pictures, on whatever device the batch is."""

import math
from typing import Final

import torch
from kornia.augmentation import ColorJitter, RandomAffine, RandomGaussianBlur
from torch import Tensor, nn

from training.tables import AugmentConfig

# Rows: unit optical densities of haematoxylin, eosin and DAB in red, green and blue
# (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291-299). Jenner-Giemsa's azure and eosin
# dyes lie close enough to the first two for a jitter.
_STAINS: Final = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Below this the picture is the black that stands around a segmented cell.
_BACKGROUND: Final = 1 / 255


class Augment(nn.Module):
    """Mirror, move, stain, blur and disturb each picture of a batch by itself; the black around a cell stays.

    Reads PyTorch's global random state, which the run seeds anew at every step. Computes in float32 under autocast
    too, whose matrices would move and stain pictures by the steps of a narrower type.
    """

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self._config = config
        self._geometry = nn.Sequential(*_geometry(config))
        self._colour = nn.Sequential(*_colour(config))
        self._blur = nn.Sequential(*_blur(config))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Change pictures of shape ``(batch, 3, size, size)``, 0..255; the range stays."""
        with torch.autocast(images.device.type, enabled=False):
            return self._change(images)

    def _change(self, images: Tensor) -> Tensor:
        variants = draw_flips(len(images), self._config, images.device)
        changed: Tensor = self._geometry(flipped(images, variants).float() / 255)
        changed = self._blur(changed)
        cell = changed.amax(dim=1, keepdim=True) > _BACKGROUND
        if len(self._colour) or self._config.noise:
            coloured = self._colour(changed)
            coloured = coloured + self._config.noise * torch.randn_like(coloured)
            changed = torch.where(cell, coloured.clamp(0, 1), changed)
        if self._config.stain:
            changed = jitter_stain(changed, self._config.stain)
        return changed * 255


def draw_flips(count: int, config: AugmentConfig, device: torch.device) -> Tensor:
    """Draw how each picture is mirrored.

    Args:
        count: Number of pictures.
        config: Which mirrorings, and how often.
        device: Where to draw.

    Returns:
        Shape ``(count,)``: 1 for left to right, 2 for top to bottom, 3 for both, 0 for neither.
    """
    bits = (torch.rand(2, count, device=device) < config.flip).long()
    return bits[0] if config.flip_axes == "horizontal" else bits[0] + 2 * bits[1]


def flipped(images: Tensor, variants: Tensor) -> Tensor:
    """Mirror pictures of shape ``(batch, 3, height, width)`` as `draw_flips` says."""
    variants = variants[:, None, None, None]
    images = torch.where(variants % 2 == 1, images.flip(3), images)
    return torch.where(variants >= 2, images.flip(2), images)


def _geometry(config: AugmentConfig) -> list[nn.Module]:
    if not (config.rotate_deg or config.shift or config.zoom or config.shear_deg):
        return []
    return [
        RandomAffine(
            degrees=config.rotate_deg,
            translate=(config.shift, config.shift),
            scale=(1 - config.zoom, 1 + config.zoom),
            shear=config.shear_deg or None,
            p=1.0,
        )
    ]


def _colour(config: AugmentConfig) -> list[nn.Module]:
    amounts = (config.brightness, config.contrast, config.saturation, config.hue)
    return [ColorJitter(*amounts, p=1.0)] if any(amounts) else []


def _blur(config: AugmentConfig) -> list[nn.Module]:
    if not config.blur_px:
        return []
    # A kernel out to three standard deviations holds all but a thousandth.
    side = 2 * math.ceil(3 * config.blur_px) + 1
    return [RandomGaussianBlur((side, side), (0.05, config.blur_px), p=1.0)]


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
