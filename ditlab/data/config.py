"""What a person says about the images: where they are and how they are brought to one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ditlab.errors import UserError, nearest

SOURCES = ("digits", "fashion", "mnist", "folder", "archive", "parquet")
SPLITS = ("train", "test")
FITS = ("crop", "pad")
CHANNELS = {0: "0 (as the first image)", 1: "1 (grayscale)", 3: "3 (RGB)", 4: "4 (RGBA)"}


@dataclass(frozen=True)
class DataConfig:
    """Which images, and their shape. Checked when the data is opened."""

    source: str = "digits"
    """Where the images come from: digits, fashion, mnist, folder, archive or parquet."""

    path: str = ""
    """The folder of images, the archive (.tar, .tar.gz, .tar.zst, .zip, ...) or the .parquet file or folder; for
    fashion and mnist the folder that holds the four IDX files."""

    split: str = "train"
    """The part of the data to use: train or test."""

    size: tuple[int, ...] = ()
    """Pixels of the prepared image: empty keeps images as they are, one number is a square, two height and width."""

    fit: Literal["crop", "pad"] = "crop"
    """How an image gets its size: crop scales it to cover the size and cuts the centre; pad centres it on black."""

    channels: int = 0
    """1 grayscale, 3 RGB, 4 RGBA; 0 takes what the first image has."""

    flip: bool = False
    """Mirror images left to right at random while training."""

    limit: int = 0
    """Use only this many images, drawn once and always the same, classes mixed; 0 uses all."""


def check_config(config: DataConfig) -> None:
    """Raise a UserError for a field whose value cannot be right, whatever the images are."""
    if config.source not in SOURCES:
        raise UserError(f"data source {config.source!r} is not known; {nearest(config.source, SOURCES)}")
    if config.split not in SPLITS:
        raise UserError(f"data split {config.split!r} is not known; {nearest(config.split, SPLITS)}")
    if config.fit not in FITS:
        raise UserError(f"data fit {config.fit!r} is not known; {nearest(config.fit, FITS)}")
    if config.channels not in CHANNELS:
        raise UserError(
            f"data channels {config.channels} is not possible; {nearest(str(config.channels), CHANNELS.values())}"
        )
    if config.limit < 0:
        raise UserError(f"data limit {config.limit} is negative; give a number of images, or 0 for all")
    target_size(config)


def target_size(config: DataConfig) -> tuple[int, int] | None:
    """Height and width in pixels that ``config.size`` asks for, None when images stay as they are.

    Raises:
        UserError: more than two numbers, or one that is not a positive whole number.
    """
    size = config.size
    whole = isinstance(size, tuple | list) and len(size) <= 2
    if not whole or any(not isinstance(side, int) or side < 1 for side in size):
        raise UserError(f"data size {size} is not possible; give one positive number (square) or two (height width)")
    return (size[0], size[-1]) if size else None
