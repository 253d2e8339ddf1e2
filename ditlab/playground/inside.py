"""What the page shows of a model's inside: patches, noised latents, what is made of them, attention, modulation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ditlab.diffusion import Point, points
from ditlab.errors import UserError
from ditlab.models import Condition, DiT
from ditlab.pipelines import Pipeline, grid, single, to_images
from ditlab.pipelines.generate import image_generator
from ditlab.playground.compute import computed

SIDE = 336  # pixels of the enlarged image, about
LINE, CHOSEN = (255, 255, 255), (255, 120, 0)
TIMES = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98)
LABELS = 32  # of a model's, at most, in a figure
VECTORS = {4: ("shift", "scale") * 2, 6: ("shift", "scale", "gate") * 2}


class Subject:
    """One image of a model, looked at from inside.

    Args:
        model: made it.
        label: of it, -1 for none.
        seed: of it; it is image 0.
        latent: of it, (1, c, h, w).
        image: uint8 (H, W, C).
    """

    def __init__(self, model: Pipeline, label: int, seed: int, latent: Tensor, image: np.ndarray):
        self.model, self.label, self.latent, self.image = model, label, latent, image
        # Noise of its own: that of the seed is what the image was made from.
        self.noise = torch.randn(latent.shape[1:], generator=image_generator(seed, 1))[None].to(model.device)

    @property
    def network(self) -> DiT:
        """The network.

        Raises:
            UserError: it has no patches.
        """
        if not isinstance(self.model.network, DiT):
            raise UserError("this model is a U-Net, which has neither patches nor modulation; choose a DiT")
        return self.model.network

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of them."""
        patch = self.network.config.patch
        return self.latent.shape[2] // patch, self.latent.shape[3] // patch

    def patch_at(self, x: float, y: float) -> int:
        """The patch under a point of ``cut``'s picture."""
        rows, columns = self.patches
        scale = _scale(self.image)
        height, width = self.image.shape[0] * scale, self.image.shape[1] * scale
        row, column = int(y * rows / height), int(x * columns / width)
        return min(max(row, 0), rows - 1) * columns + min(max(column, 0), columns - 1)

    def cut(self, chosen: int) -> Image.Image:
        """The image, large, lines between its patches, one of them marked."""
        rows, columns = self.patches
        scale = _scale(self.image)
        large = single(self.image).convert("RGB")
        large = large.resize((large.width * scale, large.height * scale), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(large)
        across, down = large.width / columns, large.height / rows
        for column in range(1, columns):
            draw.line([(column * across, 0), (column * across, large.height)], LINE)
        for row in range(1, rows):
            draw.line([(0, row * down), (large.width, row * down)], LINE)
        row, column = divmod(chosen, columns)
        box = (column * across, row * down, (column + 1) * across - 1, (row + 1) * down - 1)
        draw.rectangle(box, outline=CHOSEN, width=max(3, scale // 3))
        return large

    def noised(self, t: float) -> tuple[Tensor, Point]:
        """The latent noised to t, (1, c, h, w)."""
        (point,) = points(self.model.denoiser.schedule, [t])
        return point.alpha * self.latent + point.sigma * self.noise, point

    def predicted(self, t: float) -> tuple[Tensor, Tensor]:
        """The latent noised to t, and the one the model makes of it in one step, each (1, c, h, w)."""
        return computed(self._predict, t)

    @torch.inference_mode()
    def _predict(self, t: float) -> tuple[Tensor, Tensor]:
        x, point = self.noised(t)
        return x, self.model.denoiser(x, point, Condition(torch.tensor([self.label], device=x.device))).x0

    def predictions(self, t: float) -> Image.Image:
        """Above the image noised to a number of times, t among them; below what the model makes of each in one step."""
        times = sorted({*TIMES, round(t, 2)})
        noised, made = (torch.cat(parts) for parts in zip(*(self.predicted(time) for time in times), strict=True))
        names = [f"> t={time:.2f} <" if time == round(t, 2) else f"t={time:.2f}" for time in times]
        images = np.concatenate([computed(to_images, self.model, latents) for latents in (noised, made)])
        return grid(images, len(times), ("x_t", "x0"), names)

    def channels(self, t: float) -> Image.Image:
        """The channels of the latent, of the latent noised to t, and of the model's x0, as grey pictures."""
        noised, made = self.predicted(t)
        rows = torch.cat([self.latent, noised, made]).cpu()  # (3, c, h, w)
        low, high = (rows.amin(dim=(2, 3), keepdim=True), rows.amax(dim=(2, 3), keepdim=True))
        grey = ((rows - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
        names = [f"channel {k}" for k in range(rows.shape[1])]
        return grid(grey.flatten(0, 1)[..., None].numpy(), rows.shape[1], ("z", f"z at t={t:.2f}", "x0"), names)

    def attention(self, t: float, block: int) -> np.ndarray:
        """How much every patch takes of every other in a block at t, float32 (heads, T, T).

        Tokens that are no patches, as in-context conditions, are left out, so that a row may sum to less than 1.

        Raises:
            UserError: there is no such block.
        """
        network, tokens = self.network, self.patches[0] * self.patches[1]
        if not 0 <= block < len(network.blocks):
            raise UserError(f"block {block}: this model has blocks 0 to {len(network.blocks) - 1}")
        return computed(self._attend, network.blocks[block], t)[0, :, :tokens, :tokens].float().cpu().numpy()

    @torch.inference_mode()
    def _attend(self, block: Any, t: float) -> Tensor:
        found = list[Tensor]()
        handle = block.attention.register_forward_pre_hook(lambda module, given: found.append(module.weights(*given)))
        try:
            self._predict(t)
        finally:
            handle.remove()
        return found[0]

    def attention_figure(self, t: float, block: int, patch: int) -> Image.Image:
        """What a patch takes of every other, of each head and of all together."""
        rows, columns = self.patches
        weights = self.attention(t, block)[:, patch].reshape(-1, rows, columns)
        maps = [weights.mean(axis=0), *weights]
        names = ["all heads", *(f"head {k}" for k in range(len(weights)))]
        figure, axes = _panels(len(maps), 4)
        row, column = divmod(patch, columns)
        for axis, values, name in zip(axes, maps, names, strict=True):
            axis.imshow(values, cmap="viridis", vmin=0)
            axis.add_patch(_square(column, row))
            axis.set_title(name, fontsize=9)
            axis.set_axis_off()
        return _drawn(figure)

    def modulation_figure(self, t: float) -> Image.Image:
        """How strongly each block is modulated, by t for this label, and how far the labels differ at this t.

        Raises:
            UserError: the blocks are not adaptive.
        """
        network = self.network
        if not network.adaptive:
            raise UserError(
                f"blocks of the design {network.config.block} are not modulated: t and label are tokens there"
            )
        device, times = self.model.device, torch.linspace(0, 1, 21)
        shown = self.model.denoiser.schedule.network_time(times.to(device)).float()
        own = torch.full((len(times),), self.label, device=device)
        by_time = strength(computed(modulation, network, shown, own))
        count = self.model.classes
        panels = [("by t", by_time, (0.0, 1.0))]
        if count > 1:
            labels = torch.tensor(sorted({*np.linspace(0, count - 1, min(count, LABELS)).round().astype(int).tolist()}))
            (point,) = points(self.model.denoiser.schedule, [t])
            told = (torch.full((len(labels),), point.shown, device=device), labels.to(device))
            vectors = computed(modulation, network, *told)
            panels.append(
                (f"by label, t={t:.2f}", strength(vectors - vectors.mean(dim=2, keepdim=True)), (0, count - 1))
            )
        names = VECTORS[by_time.shape[1]]
        figure, axes = _panels(len(names) * len(panels), len(names), 1.9)
        for row, (title, values, (first, last)) in enumerate(panels):
            for column, name in enumerate(names):
                axis = axes[row * len(names) + column]
                extent = (first, last, len(network.blocks) - 0.5, -0.5)
                axis.imshow(values[:, column], cmap="magma", aspect="auto", extent=extent, vmin=0)
                part = "attention" if column < len(names) // 2 else "MLP"
                axis.set_title(f"{name}, {part}", fontsize=8)
                axis.tick_params(labelsize=7)
                axis.set_xlabel(title, fontsize=8)
                if column == 0:
                    axis.set_ylabel("block", fontsize=8)
        return _drawn(figure)


@torch.inference_mode()
def modulation(network: DiT, t: Tensor, labels: Tensor) -> Tensor:
    """The vectors that modulate each adaptive block, (blocks, vectors, N, D).

    Args:
        network: of an adaptive design.
        t: times as networks are shown them (N,).
        labels: int64 (N,).
    """
    c = network.timestep_embedding(t) + network.label_embedding(labels)
    shared = None if network.modulation is None else network.modulation(F.silu(c))
    blocks: Sequence[Any] = list(network.blocks)
    return torch.stack([torch.stack(block.vectors_of(c, shared)) for block in blocks])


def strength(vectors: Tensor) -> np.ndarray:
    """Root mean squares of vectors (blocks, vectors, N, D) over D, (blocks, vectors, N)."""
    return vectors.square().mean(dim=-1).sqrt().cpu().numpy()


def _scale(image: np.ndarray) -> int:
    return max(1, SIDE // max(image.shape[:2]))


def _panels(count: int, columns: int, side: float = 2.0) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _square(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:orange", linewidth=2)


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
