"""Noised data and every quantity a network can be asked to predict from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ditlab.diffusion.schedules import Schedule

TARGETS = ("epsilon", "x0", "v", "velocity")


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) in the type of ``like`` (N, ...), shaped to multiply it."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Corrupted:
    """A noised batch: x_t = alpha x0 + sigma epsilon, all (N, C, H, W); alpha and sigma (N, 1, 1, 1)."""

    x_t: Tensor
    x0: Tensor
    epsilon: Tensor
    alpha: Tensor
    sigma: Tensor

    def target(self, name: str) -> Tensor:
        """What a network that predicts ``name`` should say, (N, C, H, W).

        ``epsilon``: the noise. ``x0``: the data. ``v``: alpha epsilon - sigma x0 (Salimans and Ho 2022). ``velocity``:
        epsilon - x0, the derivative of rectified flow's path.

        Raises:
            KeyError: no such target.
        """
        if name == "v":
            return self.alpha * self.epsilon - self.sigma * self.x0
        return {"epsilon": self.epsilon, "x0": self.x0, "velocity": self.epsilon - self.x0}[name]


def corrupt(schedule: Schedule, x0: Tensor, epsilon: Tensor, t: Tensor) -> Corrupted:
    """Noise data x0 (N, C, H, W) with epsilon (N, C, H, W) to times t (N,)."""
    alpha, sigma = (per_sample(value, x0) for value in schedule(t))
    return Corrupted(alpha * x0 + sigma * epsilon, x0, epsilon, alpha, sigma)


def solve(target: str, output: Tensor, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Data and noise (x0, epsilon), each (N, C, H, W), from what a network said of x = alpha x0 + sigma epsilon.

    Raises:
        ValueError: no such target.
    """
    if target == "epsilon":
        return (x - sigma * output) / alpha, output
    if target == "x0":
        return output, (x - alpha * output) / sigma
    if target == "v":
        norm = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm
    if target == "velocity":
        x0 = (x - sigma * output) / (alpha + sigma)
        return x0, x0 + output
    raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
