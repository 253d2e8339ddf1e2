"""The times at which a sampler evaluates the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from ditlab.diffusion.schedules import Schedule

T = TypeVar("T", float, Tensor)


def shifted(t: T, shift: float) -> T:
    """Shift t / (1 + (shift - 1) t): more noise at every time t in [0, 1] for a shift above 1 (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class TimeGrid:
    """Decreasing times from noise; the last step goes from the last of them to data without noise.

    Attributes:
        spacing: on the table of a discrete schedule: ``even`` from the noisiest row, 0 excluded, to the nearest row;
            ``linspace`` from the last row to the first, both included (DDPM; Nichol and Dhariwal 2021, section 4);
            ``leading`` from row 0 upwards, rounded down (DDIM's public code), which is ``even`` where the last row is pure
            noise, since sampling then starts at it. On a continuous schedule: even from 1.
        shift: of a continuous schedule, see ``shifted``; 1 is none.
    """

    spacing: Literal["even", "linspace", "leading"] = "even"
    shift: float = 1.0

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """``steps`` times in (0, 1], or the table's rows over its last row."""
        rows = schedule.steps - 1
        if rows < 0:
            even = (1 - k / steps for k in range(steps))
            return [shifted(t, self.shift) for t in even]
        if self.spacing == "leading" and not schedule.zero_snr:
            return [k * schedule.steps // steps / rows for k in reversed(range(steps))]
        if self.spacing == "linspace":
            stride = rows / max(steps - 1, 1)
            return [1.0] if steps == 1 else [round(k * stride) / rows for k in reversed(range(steps))]
        last = 0 if steps > rows else 1  # with as many steps as rows: every row, the first one included
        stride = rows / (steps - 1 + last)
        return [round(k * stride) / rows for k in range(steps - 1 + last, last - 1, -1)]
