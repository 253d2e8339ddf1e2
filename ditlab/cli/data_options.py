"""The flags of ``ditlab data``, apart from the command because they need ditlab.data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ditlab.data import DataConfig


@dataclass(frozen=True)
class DataOptions:
    """Print what a data set contains, and draw some of its images; nothing is trained."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """A folder, archive, table or URL, see --data.path of `ditlab train`; or digits, scenes, bouncing, fashion, mnist or
    emoji."""
    data: DataConfig = field(default_factory=lambda: DataConfig(source="folder"))
    """How the images are read, as when training; without --data.size they are drawn at 64x64."""
    out: str = "data.png"
    """File of the picture: some images of each class, a row for each of the first."""
