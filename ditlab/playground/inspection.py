"""Figures of a network's internals for one image: patches, noised latents, predictions, attention, modulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ditlab.diffusion import ScheduleStep, schedule_steps
from ditlab.errors import UserError
from ditlab.models import Condition, DiT
from ditlab.models.layout import Layout
from ditlab.pipelines import Pipeline, grid, image_generator, single
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.figures import outline, render, subplots

SIDE = 336  # approximate size of the enlarged image, in pixels
LINE_COLOUR, SELECTED_COLOUR = (255, 255, 255), (255, 120, 0)
TIMES = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98)
MAX_LABELS = 32  # in a figure
VECTOR_NAMES = {4: ("shift", "scale") * 2, 6: ("shift", "scale", "gate") * 2}


class Inspection:
    """One generated image and the network that generated it.

    Args:
        model: the pipeline.
        condition: of the image, one sample.
        seed: seed of the image; the image is number 0 of it.
        latent: latent of the image, (1, c, h, w).
        image: uint8 (H, W, C).
        prompt: of the image, for a model of prompts.
        notes: what of the prompt has no effect.
    """

    def __init__(
        self, model: Pipeline, condition: Condition, seed: int, latent: Tensor, image: np.ndarray, prompt: str = "",
        notes: Sequence[str] = (),
    ):  # fmt: skip
        self.model, self.latent, self.image, self.prompt, self.notes = model, latent, image, prompt, notes
        self.condition = condition.to(model.device)
        # Not the noise that the image was generated from.
        self.noise = torch.randn(latent.shape[1:], generator=image_generator(seed, 1))[None].to(model.device)

    @property
    def network(self) -> DiT:
        """The network, a DiT.

        Raises:
            UserError: the network has no patches.
        """
        network = self.model.network
        if not network.supports.tokens:
            raise UserError("this model has no patch tokens (it is a U-Net); select a DiT")
        return cast(DiT, network)

    @property
    def patches(self) -> tuple[int, int]:
        """Number of rows and columns of patches."""
        patch = self.network.config.patch
        return self.latent.shape[2] // patch, self.latent.shape[3] // patch

    def patch_at(self, x: float, y: float) -> int:
        """The index of the patch at a pixel of ``patch_figure``."""
        rows, columns = self.patches
        scale = _scale(self.image)
        height, width = self.image.shape[0] * scale, self.image.shape[1] * scale
        row, column = int(y * rows / height), int(x * columns / width)
        return min(max(row, 0), rows - 1) * columns + min(max(column, 0), columns - 1)

    def patch_figure(self, patch: int) -> Image.Image:
        """The enlarged image with the patch grid, one patch marked."""
        rows, columns = self.patches
        scale = _scale(self.image)
        large = single(self.image).convert("RGB")
        large = large.resize((large.width * scale, large.height * scale), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(large)
        step_x, step_y = large.width / columns, large.height / rows
        for column in range(1, columns):
            draw.line([(column * step_x, 0), (column * step_x, large.height)], LINE_COLOUR)
        for row in range(1, rows):
            draw.line([(0, row * step_y), (large.width, row * step_y)], LINE_COLOUR)
        row, column = divmod(patch, columns)
        box = (column * step_x, row * step_y, (column + 1) * step_x - 1, (row + 1) * step_y - 1)
        draw.rectangle(box, outline=SELECTED_COLOUR, width=max(3, scale // 3))
        return large

    def noised(self, t: float) -> tuple[Tensor, ScheduleStep]:
        """The noised latent x_t, (1, c, h, w), and the schedule at t."""
        (point,) = schedule_steps(self.model.denoiser.schedule, [t])
        return point.alpha * self.latent + point.sigma * self.noise, point

    def predict(self, t: float) -> tuple[Tensor, Tensor]:
        """The noised latent x_t and the predicted x0, each (1, c, h, w)."""
        return run_on_compute_thread(self._predict, t)

    @torch.inference_mode()
    def _predict(self, t: float) -> tuple[Tensor, Tensor]:
        x, point = self.noised(t)
        return x, self.model.denoiser.predict(x, point, self.condition).x0

    def prediction_figure(self, t: float) -> Image.Image:
        """Decoded x_t at several times, t included, above the decoded x0 predicted from each."""
        times = sorted({*TIMES, round(t, 2)})
        x_t, x0 = (torch.cat(parts) for parts in zip(*(self.predict(time) for time in times), strict=True))
        names = [f"> t={time:.2f} <" if time == round(t, 2) else f"t={time:.2f}" for time in times]
        images = np.concatenate([run_on_compute_thread(self.model.decode, latents) for latents in (x_t, x0)])
        return grid(images, len(times), ("x_t", "x0"), names)

    def channel_figure(self, t: float) -> Image.Image:
        """The channels of the latent, of x_t and of the predicted x0, as grey images."""
        x_t, x0 = self.predict(t)
        rows = torch.cat([self.latent, x_t, x0]).cpu()  # (3, c, h, w)
        low, high = (rows.amin(dim=(2, 3), keepdim=True), rows.amax(dim=(2, 3), keepdim=True))
        grey = ((rows - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
        names = [f"channel {k}" for k in range(rows.shape[1])]
        return grid(grey.flatten(0, 1)[..., None].numpy(), rows.shape[1], ("z", f"z at t={t:.2f}", "x0"), names)

    def attention(self, t: float, block: int) -> np.ndarray:
        """Attention weights between patches in a block at t, float32 (heads, T, T).

        Tokens that are not patches (in-context conditions) are removed, so that a row may sum to less than 1.

        Raises:
            UserError: no such block.
        """
        network, tokens = self.network, self.patches[0] * self.patches[1]
        if not 0 <= block < len(network.blocks):
            raise UserError(f"block {block} is out of range; this model has blocks 0 to {len(network.blocks) - 1}")
        attention: Any = network.blocks[block].attention
        (weights,) = run_on_compute_thread(
            self.attention_weights, [attention], t, lambda each: each[0, :, :tokens, :tokens]
        )
        return weights

    @torch.inference_mode()
    def attention_weights(self, modules: Sequence[Any], t: float, part: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
        """A part of the weights (1, heads, T, S) of each of several attention modules at t, float32; in the compute thread."""
        found = list[np.ndarray]()

        def keep(module: Any, given: tuple) -> None:
            found.append(part(module.weights(*given)).float().cpu().numpy())

        handles = [module.register_forward_pre_hook(keep) for module in modules]
        try:
            self._predict(t)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def attention_figure(self, t: float, block: int, patch: int) -> Image.Image:
        """Attention weights of one patch over all patches: each head, and their mean."""
        rows, columns = self.patches
        weights = self.attention(t, block)[:, patch].reshape(-1, rows, columns)
        maps = [weights.mean(axis=0), *weights]
        names = ["mean of heads", *(f"head {k}" for k in range(len(weights)))]
        figure, axes = subplots(len(maps), 4)
        row, column = divmod(patch, columns)
        for axis, values, name in zip(axes, maps, names, strict=True):
            axis.imshow(values, cmap="viridis", vmin=0)
            axis.add_patch(outline(column, row))
            axis.set_title(name, fontsize=9)
            axis.set_axis_off()
        return render(figure)

    def modulation_figure(self, t: float) -> Image.Image:
        """Root mean square of each block's modulation vectors over t, and of their deviation between labels, or example
        prompts, at this t.

        Raises:
            UserError: the blocks are not modulated.
        """
        network = self.network
        if not network.design.adaptive:
            raise UserError(f"blocks of type {network.config.block} have no modulation; time and label enter as tokens")
        device, times = self.model.device, torch.linspace(0, 1, 21)
        network_times = self.model.denoiser.schedule.network_time(times.to(device)).float()
        same = self.condition.select(torch.zeros(len(times), dtype=torch.int64, device=device))
        by_time = rms(run_on_compute_thread(modulation, network, network_times, same))
        text = self.model.text is not None
        count = len(self.model.prompts) if text else self.model.classes
        panels = [("t", by_time, (0.0, 1.0))]
        if count > 1 and (network.design.pooled or not text):
            chosen = sorted({*np.linspace(0, count - 1, min(count, MAX_LABELS)).round().astype(int).tolist()})
            others = run_on_compute_thread(
                self.model.condition, [self.model.prompts[k] for k in chosen] if text else chosen, len(chosen)
            )
            (point,) = schedule_steps(self.model.denoiser.schedule, [t])
            network_time = torch.ones(len(chosen), device=device) * point.network_time
            vectors = run_on_compute_thread(modulation, network, network_time, others.to(device))
            name = "example prompt" if text else "label"
            panels.append((f"{name}, at t={t:.2f}", rms(vectors - vectors.mean(dim=2, keepdim=True)), (0, count - 1)))
        names = VECTOR_NAMES[by_time.shape[1]]
        figure, axes = subplots(len(names) * len(panels), len(names), 1.9)
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
        return render(figure)


@torch.inference_mode()
def modulation(network: DiT, t: Tensor, condition: Condition) -> Tensor:
    """The modulation vectors of each block, (blocks, vectors, N, D).

    Args:
        network: a DiT with modulated blocks.
        t: network times (N,).
        condition: of N samples.
    """
    conditioning = network.condition_embedding(condition)
    _, c = network.design.prepare(network.timestep_embedding(t), conditioning)  # (N, 1, D)
    assert c is not None
    shared = None if network.shared_modulation is None else network.shared_modulation(F.silu(c))
    blocks: Sequence[Any] = list(network.blocks)
    # The first six: more are of a text stream.
    vectors = [torch.stack(block.modulation_vectors(c, Layout(c), shared)[:6]) for block in blocks]
    return torch.stack(vectors)[..., 0, :]


def rms(vectors: Tensor) -> np.ndarray:
    """Root mean square of vectors (blocks, vectors, N, D) over D, (blocks, vectors, N)."""
    return vectors.square().mean(dim=-1).sqrt().cpu().numpy()


def _scale(image: np.ndarray) -> int:
    return max(1, SIDE // max(image.shape[:2]))
