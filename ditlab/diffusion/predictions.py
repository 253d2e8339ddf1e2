"""Noised samples, the quantities a network can predict from them, and the conversion between these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditlab.diffusion.schedules import Schedule

TARGETS = ("epsilon", "x0", "v", "velocity")


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,), or (N, F) for a time a frame, in the type of ``like`` (N, C, *size), shaped to multiply it."""
    shape = values.shape if values.ndim == 1 else (values.shape[0], 1, values.shape[1])
    return values.to(like.dtype).view(*shape, *[1] * (like.ndim - len(shape)))


@dataclass(frozen=True)
class Corrupted:
    """A noised batch: x_t = alpha x0 + sigma epsilon, all (N, C, *size); alpha and sigma broadcast to it."""

    x_t: Tensor
    x0: Tensor
    epsilon: Tensor
    alpha: Tensor
    sigma: Tensor

    def target(self, name: str) -> Tensor:
        """The value that a network of target ``name`` is trained to predict, (N, C, *size).

        ``epsilon``: the noise. ``x0``: the data. ``v``: alpha epsilon - sigma x0 (Salimans and Ho 2022). ``velocity``:
        epsilon - x0, the derivative of rectified flow's path.

        Raises:
            KeyError: an unknown target.
        """
        if name == "v":
            return self.alpha * self.epsilon - self.sigma * self.x0
        return {"epsilon": self.epsilon, "x0": self.x0, "velocity": self.epsilon - self.x0}[name]


def corrupt(schedule: Schedule, x0: Tensor, epsilon: Tensor, t: Tensor) -> Corrupted:
    """Noise data x0 (N, C, *size) with epsilon (N, C, *size) to times t (N,) or (N, F)."""
    alpha, sigma = (per_sample(value, x0) for value in schedule(t))
    return Corrupted(alpha * x0 + sigma * epsilon, x0, epsilon, alpha, sigma)


def to_x0_epsilon(
    target: str, output: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Data and noise (x0, epsilon), each (N, C, *size), from a network's output at x = alpha x0 + sigma epsilon.

    epsilon: x0 = (x - sigma output) / alpha. x0: epsilon = (x - alpha output) / sigma. v: x0 = alpha x - sigma output,
    epsilon = sigma x + alpha output, both over alpha^2 + sigma^2. velocity: x0 = (x - sigma output) / (alpha + sigma),
    epsilon = x0 + output.

    Raises:
        ValueError: an unknown target.
    """
    if target == "epsilon":
        return (x - sigma * output) / alpha, output
    if target == "x0":
        return output, noise_of(x, output, alpha, sigma)
    if target == "v":
        norm = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm
    if target == "velocity":
        x0 = (x - sigma * output) / (alpha + sigma)
        return x0, x0 + output
    raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")


def noise_of(x: Tensor, x0: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Epsilon = (x - alpha x0) / sigma; 0 where sigma is 0, as in known frames."""
    if not isinstance(sigma, Tensor):
        return (x - alpha * x0) / sigma
    return torch.where(sigma.gt(0), (x - alpha * x0) / sigma.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
