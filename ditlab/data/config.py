"""Which images to use and how they are brought to one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ditlab.errors import UserError, nearest

SPLITS = ("train", "valid", "test")
FITS = ("crop", "pad")
CHANNELS = {0: "0 (as the images)", 1: "1 (grayscale)", 3: "3 (RGB)", 4: "4 (RGBA)"}


@dataclass(frozen=True)
class DataConfig:
    """Which images, and their size. Checked when the data is opened."""

    source: str = "digits"
    """Where the images come from: digits, scenes, fashion, mnist, emoji, folder, archive or parquet; or clips: bouncing."""

    path: str = ""
    """The folder of images, the archive (.tar, .tar.gz, .tar.zst, .zip, ...), the table (.parquet, .arrow, or a folder of
    them), or a URL of one of these (hf://datasets/OWNER/NAME, s3://...); for fashion and mnist the folder of the IDX files; for
    emoji the folder of the npm packages."""

    split: str = "train"
    """The split to use: train, valid or test. Without a test split, test is the valid one."""

    label: str = ""
    """Where classes come from: a column of metadata.jsonl, metadata.csv or a parquet file; folder, filename
    (class_0001.png) or none. Empty: the first of a table, folders and file names that gives classes."""

    caption: str = ""
    """Where captions come from: a column of a table (text, caption, ...), a key of .json files, txt (files of the images'
    names, a caption a line) or none; full, short or none for scenes. Empty: the first of these that gives captions."""

    image: str = ""
    """The column of images of a table that has several."""

    size: tuple[int, ...] = ()
    """Image size in pixels: empty keeps images as they are, one number is a square, two numbers are H W."""

    frames: int = 0
    """Frames of a clip: 0 are the data set's, 17 of bouncing."""

    fit: Literal["crop", "pad"] = "crop"
    """How an image is brought to the size: crop scales it to cover the size and cuts the centre; pad centres it on black."""

    channels: int = 0
    """1 grayscale, 3 RGB, 4 RGBA; 0 uses those of the images, RGB where they differ."""

    flip: bool = False
    """Mirror images left to right at random during training."""

    limit: int = 0
    """Use only this many images: a fixed random subset with classes mixed; 0 uses all."""


def check_config(config: DataConfig) -> None:
    """Raise a UserError for a field whose value is not possible for any data set."""
    if config.split not in SPLITS:
        raise UserError(f"data split {config.split!r} is not known; {nearest(config.split, SPLITS)}")
    if config.fit not in FITS:
        raise UserError(f"data fit {config.fit!r} is not known; {nearest(config.fit, FITS)}")
    if config.channels not in CHANNELS:
        known = nearest(str(config.channels), CHANNELS.values())
        raise UserError(f"data channels {config.channels} is not possible; {known}")
    if config.frames < 0:
        raise UserError(f"data frames {config.frames} is negative; give a number of frames, or 0 for the data set's")
    if config.limit < 0:
        raise UserError(f"data limit {config.limit} is negative; give a number of images, or 0 for all")
    target_size(config)


def target_size(config: DataConfig) -> tuple[int, int] | None:
    """The size (H, W) in pixels that ``config.size`` gives, None if images keep their own; UserError if not possible."""
    size = config.size
    valid = isinstance(size, tuple | list) and len(size) <= 2
    if not valid or any(not isinstance(side, int) or side < 1 for side in size):
        raise UserError(f"data size {size} is not possible; give one positive number (square) or two (H W)")
    return (size[0], size[-1]) if size else None
