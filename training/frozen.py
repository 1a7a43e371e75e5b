"""Pooled features of every cell, computed once: what a run needs whose backbone does not change.

Where all that is learnt stands behind the pooling, and pictures are mirrored at most, an epoch needs
no backbone: the features of each mirroring are the same every time.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from app.core.parts import Preprocessing
from app.core.windows import see_windows
from training.config import ProbeRunConfig, RunConfig
from training.data.augment import flipped
from training.data.dataset import Data
from training.module import BATCH, Scaled, looking_device
from training.zoo import Classifier


def can_be_pooled(config: RunConfig, network: Classifier) -> bool:
    """Say whether a run can learn from pooled features alone."""
    return config.model.freeze and config.augment.flips_only and network.head.learns_after_pooling


def pooled_features(
    network: Classifier, config: RunConfig | ProbeRunConfig, data: Data, cache: Path
) -> NDArray[np.float32]:
    """Return each cell's pooled features, as it is and mirrored in every way.

    Args:
        network: With its start weights.
        config: Of the run.
        data: Its pictures.
        cache: Folder for the array, which is found again by the pictures' and the backbone's hash.

    Returns:
        Shape ``(cells, variants, width)``; the variants are those of `draw_flips`.
    """
    variants = 1 if not config.augment.flip else 2 if config.augment.flip_axes == "horizontal" else 4
    file = cache / f"pooled-{_key(network, config, data)}-{variants}.npy"
    if not file.exists():
        spec = config.input.spec()
        module = Scaled(network, spec)
        device = looking_device()
        # Several processes of one run may compute it at the same time.
        part = file.with_suffix(f".part{os.getpid()}")
        with part.open("wb") as opened:
            np.save(opened, _compute(module.to(device).eval(), data, spec, variants, device))
        part.replace(file)
        module.cpu().train()
    features: NDArray[np.float32] = np.load(file)
    return features


@torch.no_grad()
def _compute(
    module: Scaled, data: Data, spec: Preprocessing, variants: int, device: torch.device
) -> NDArray[np.float32]:
    parts: list[NDArray[np.float32]] = []
    batch = BATCH[device.type]
    for start in track(range(0, len(data.inputs), batch), "Computing features"):
        images = np.array(data.inputs[start : start + batch])
        parts += see_windows(images, spec, lambda patch: [_see(module, patch.pixels, variants, device)])
    return np.concatenate(parts)


def _see(module: Scaled, pictures: NDArray[np.uint8], variants: int, device: torch.device) -> NDArray[np.float32]:
    """Pooled features of pictures of one size, shape ``(pictures, variants, width)``."""
    images = torch.from_numpy(pictures).to(device)
    views = []
    for variant in range(variants):
        numbers = torch.full((len(images),), variant, device=device)
        view = flipped(images.permute(0, 3, 1, 2), numbers).permute(0, 2, 3, 1)
        views.append(module.pooled_features(view).cpu().numpy())
    return np.stack(views, axis=1)


def _key(network: Classifier, config: RunConfig | ProbeRunConfig, data: Data) -> str:
    digest = hashlib.sha256(f"{config.input.model_dump_json()} {type(network.head).__name__}".encode())
    digest.update("\n".join(data.cells["sha256"]).encode())
    for name, tensor in network.backbone.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
