"""Figure of a latent space of two numbers: images as points coloured by class, and images decoded from a grid."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange

from ditlab.encoders.autoencoder import Autoencoder


def plane_figure(
    autoencoder: Autoencoder, coordinates: np.ndarray, classes: np.ndarray, names: Sequence[str], side: int = 16
) -> bytes:
    """A PNG of the raw latents (N, 2) of images of classes (N,), next to images decoded from a grid over them.

    The autoencoder's latent has shape (2, 1, 1). The grid has ``side`` points along each axis, from the 2nd to the 98th
    percentile of the coordinates.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    low, high = np.percentile(coordinates, [2, 98], axis=0)
    across, down = np.meshgrid(np.linspace(low[0], high[0], side), np.linspace(high[1], low[1], side))
    points = torch.from_numpy(np.stack([across.ravel(), down.ravel()], axis=1)).float()
    with torch.no_grad():
        decoded = autoencoder.decode_raw(points[:, :, None, None].to(autoencoder.mean.device))
    tiles = decoded.float().cpu().clamp(-1, 1).add(1).div(2).numpy()
    sheet = rearrange(tiles, "(down across) c h w -> (down h) (across w) c", down=side)

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 7), layout="constrained")
    shown = names or [str(index) for index in range(int(classes.max()) + 1)]
    handles = []
    for index in range(int(classes.max()) + 1):
        x, y = coordinates[classes == index].T
        colour = plt.get_cmap("tab10")(index % 10)
        left.scatter(x, y, s=12, color=colour, alpha=0.7, linewidths=0)
        handles.append(left.scatter([], [], s=40, color=colour))
    left.set(xlabel="first latent number", ylabel="second latent number", title="images as two numbers each")
    reach = np.percentile(coordinates, [0.5, 99.5], axis=0)
    left.set(xlim=reach[:, 0], ylim=reach[:, 1])
    left.legend(handles, shown, loc="best", framealpha=0.9)
    sheet = sheet[..., 0] if sheet.shape[2] == 1 else sheet
    right.imshow(sheet, cmap="gray", extent=(low[0], high[0], low[1], high[1]), aspect="auto")
    right.set(xlabel="first latent number", ylabel="second latent number", title="decoded from a grid over the plane")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()
