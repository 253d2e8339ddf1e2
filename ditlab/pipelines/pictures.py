"""Images as files: grids, filmstrips of a denoising, and zip archives, each written atomically."""

from __future__ import annotations

import io
import json
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ditlab.diffusion import State
from ditlab.pipelines.gather import gather
from ditlab.pipelines.sampling import SampleConfig
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

if TYPE_CHECKING:  # the pipeline imports this module
    from ditlab.pipelines.pipeline import Pipeline

BACKGROUND, TEXT = 255, 40
TILE = 64  # pixels a side, at least, of an image in a grid
CAPTION, CAPTION_LINES = 12, 4  # pixels of a letter under an image
STRIP = 6  # frames of a clip in a grid, at most
NAME_BYTES = 200  # of a class in the name of a file


def grid(
    images: np.ndarray, columns: int, row_names: Sequence[str] = (), column_names: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> Image.Image:  # fmt: skip
    """A grid of images uint8 (N, H, W, C), or of ``strips`` of clips (N, F, H, W, C), row by row with gaps.

    Small images are enlarged by an integer factor.

    Args:
        images: C is 1, 3 or 4; of another number the first channel is drawn.
        columns: images per row.
        row_names: written left of the rows.
        column_names: written above the columns, truncated to their width.
        captions: of the first images, written under them in up to ``CAPTION_LINES`` lines; small images are then drawn larger.
    """
    if images.ndim == 5:  # of clips some frames, one after another
        images, columns = strips(images), max(1, columns // STRIP)
    count, *sides, channels = images.shape
    if channels not in (1, 3, 4):
        images, channels = images[..., :1], 1
    scale = max(1, -(-TILE * (2 if captions else 1) // max(sides)))
    gap = max(2, scale * max(sides) // 12)
    rows = -(-count // columns)
    size = max(12, scale * max(sides) // 12)
    font = label_font(size)
    left = max((int(font.getlength(name)) + 2 * gap for name in row_names), default=0)
    top = size + gap + gap // 2 if column_names else 0
    small = label_font(CAPTION)
    texts = [_wrapped(caption, small, sides[1] * scale) for caption in captions]
    line = CAPTION + 3
    under = max(map(len, texts), default=0) * line
    step_x, step_y = sides[1] * scale + gap, sides[0] * scale + under + gap
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    canvas = Image.new(
        mode,
        (left + gap + columns * step_x, top + gap + rows * step_y),
        (BACKGROUND,) * channels if channels > 1 else BACKGROUND,
    )
    draw = ImageDraw.Draw(canvas)
    colour = (TEXT,) * 3 + (255,) * (channels - 3) if channels > 1 else TEXT
    for row, name in enumerate(row_names[:rows]):
        draw.text(
            (left - gap, top + gap + row * step_y + sides[0] * scale // 2), name, fill=colour, font=font, anchor="rm"
        )
    for column, name in enumerate(column_names[:columns]):
        draw.text(
            (left + gap + column * step_x + sides[1] * scale // 2, gap + size // 2),
            _truncated(name, font, sides[1] * scale),
            fill=colour,
            font=font,
            anchor="mm",
        )
    for index, image in enumerate(images):
        tile = single(image).resize((sides[1] * scale, sides[0] * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + gap + index % columns * step_x, top + gap + index // columns * step_y))
    for index, lines in enumerate(texts):
        x, y = left + gap + index % columns * step_x, top + gap + index // columns * step_y + sides[0] * scale
        for number, text in enumerate(lines):
            draw.text((x, y + number * line + line // 2), text, fill=colour, font=small, anchor="lm")
    return canvas


def sample_grid(model: Pipeline, count: int, seed: int, processes: Processes = ALONE) -> Image.Image | None:
    """About ``count`` samples in a square; every process makes some, the main one returns the picture.

    One row per class, or one prompt per image, written under it.
    """
    columns = max(1, round(count**0.5))
    rows, known = max(1, count // columns), model.trained_labels
    shown = [known[row % len(known)] for row in range(rows)] if known else []
    labels = [label for label in shown for _ in range(columns)] or None
    batch = min(64, -(-rows * columns // processes.size))
    images = gather(model.batches(labels, seed, rows * columns, model.defaults, batch, processes), processes)
    names = [model.names[label] for label in shown] if model.names else ()
    return grid(images, columns, names, captions=model.captions(labels, len(images))) if processes.is_main else None


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's font, of Latin, Greek, Cyrillic and Arabic letters; Pillow's own has no letter with an accent."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _truncated(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A name truncated to at most ``width`` pixels, ending in dots."""
    if font.getlength(name) <= width:
        return name
    length = next((k for k in range(len(name) - 1, 0, -1) if font.getlength(f"{name[:k].rstrip()}...") <= width), 1)
    return f"{name[:length].rstrip()}..."


def strips(clips: np.ndarray) -> np.ndarray:
    """Up to ``STRIP`` frames of each clip uint8 (N, F, H, W, C) side by side, (N, H, W', C)."""
    count, frames, height, _, channels = clips.shape
    line = np.full((count, height, 1, channels), 200, np.uint8)
    shown = np.unique(np.linspace(0, frames - 1, STRIP).round().astype(int))
    parts = [part for frame in shown for part in (line, clips[:, frame])]
    return np.concatenate(parts[1:], axis=2)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, cut between words where there are some; the last ends in dots if text is left."""
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < CAPTION_LINES:
        fits = bisect_right(range(2, min(len(rest), width) + 1), width, key=lambda k: font.getlength(rest[:k])) + 1
        space = rest.rfind(" ", 0, fits + 1)
        cut = fits if fits >= len(rest) or space <= 0 else space
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    if rest:
        lines[-1] = _truncated(f"{lines[-1]} {rest[:width]}", font, width)
    return lines


def filmstrip(
    model: Pipeline, labels: Sequence[str | int] | None, seed: int, count: int, config: SampleConfig, frames: int = 10
) -> Image.Image:
    """The denoising of ``count`` images from noise to image: above x_t, below the data the model expects of it.

    The first frame is pure noise; the last is the finished image, with the last expectation, from which it was made.

    Raises:
        UserError: the model cannot be sampled so.
    """
    states = list(model.states(model.condition(labels, count), seed, 0, config))
    return strip(model, states, frames, model.captions(labels, count))


def strip(model: Pipeline, states: Sequence[State], frames: int = 10, captions: Sequence[str] = ()) -> Image.Image:
    """The same of a denoising that is done: its states, in order, each of the same images; captions are written above."""
    shown = [states[k] for k in sorted(set(np.linspace(0, len(states) - 1, frames - 1).round().astype(int)))]
    noised = [*(state.x_t for state in shown), states[-1].x_s]  # each (count, c, h, w)
    expected = [*(state.x0 for state in shown), states[-1].x0]
    drawn = [np.stack([model.decode(latents) for latents in row], axis=1) for row in (noised, expected)]
    images = np.stack(drawn, axis=1)  # (count, 2, frames, H, W, C)
    times = [f"t={point.t:.2f}" for point in (*(state.t for state in shown), states[-1].s)]
    rows, columns = ("x_t", "x0"), len(times)
    if not captions:
        return grid(images.reshape(-1, *images.shape[3:]), columns, rows * len(images), times)
    strips = [grid(each.reshape(-1, *each.shape[2:]), columns, rows, times) for each in images]
    return _stacked([_headed(each, caption) for each, caption in zip(strips, captions, strict=True)])


def _headed(picture: Image.Image, text: str) -> Image.Image:
    """A picture with a line of text above it, truncated to its width."""
    font, band = label_font(CAPTION), CAPTION * 2
    canvas = _stacked(
        [Image.new(picture.mode, (picture.width, band), (BACKGROUND,) * len(picture.getbands())), picture]
    )
    line = _truncated(" ".join(text.split()), font, picture.width - CAPTION)
    ImageDraw.Draw(canvas).text(
        (CAPTION // 2, band // 2), line, (TEXT,) * 3 if canvas.mode == "RGB" else TEXT, font, "lm"
    )
    return canvas


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width and mode below each other."""
    canvas = Image.new(pictures[0].mode, (pictures[0].width, sum(each.height for each in pictures)))
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def write_png(picture: Image.Image, path: Path, settings: dict[str, object] | None = None) -> None:
    """Write a PNG as ``png`` makes it.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    files.write_file(path, png(picture, settings))


def png(picture: Image.Image, settings: Mapping[str, object] | None = None) -> bytes:
    """A PNG; ``settings`` go into its text as JSON under "ditlab"."""
    info = PngInfo()
    if settings:
        info.add_text("ditlab", json.dumps(settings))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


def image_file(picture: Image.Image, settings: Mapping[str, object], kind: str = "png", quality: int = 100) -> bytes:
    """A ``png``, ``webp`` or ``jpeg`` with its settings as JSON.

    A PNG has them in its text, see ``png``; the others in the EXIF tag ImageDescription.

    Args:
        picture: of mode L or RGB, or RGBA except in a jpeg.
        settings: what the image depends on.
        kind: the file format.
        quality: of webp and jpeg, 0 to 100; a webp of 100 is lossless.
    """
    if kind == "png":
        return png(picture, settings)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(settings)  # ASCII, as EXIF demands
    if kind == "jpeg":
        picture.save(buffer, "JPEG", quality=max(quality, 1), subsampling=0, exif=exif)  # Pillow's 0 is its default
    else:
        picture.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exif=exif)
    return buffer.getvalue()


def image_files(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], settings: Mapping[str, object], first: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Images uint8 (N, H, W, C) as PNG files, one each: name and content. ``first`` is the number of the first image."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True), first):
        name = f"-{_file_name(names[int(label)])}" if names and label >= 0 else ""
        short = name.encode()[:NAME_BYTES].decode("utf-8", "ignore")  # a class may have as long a name as a file
        yield f"{index:06d}{short}.png", png(single(image), {**settings, "image": index})


def _file_name(text: str) -> str:
    """A class or prompt as a part of a file's name: without separators, control characters and halves of surrogate pairs."""
    return "".join(each if each.isprintable() and each not in "/\\" else "_" for each in text)


def single(image: np.ndarray) -> Image.Image:
    """An image uint8 (H, W, C), C being 1, 3 or 4; of any other number of channels the first."""
    return Image.fromarray(image if image.shape[2] in (3, 4) else image[..., 0])


def write_zip(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], path: Path, settings: dict[str, object]
) -> None:
    """Write images uint8 (N, H, W, C) as a .zip of PNGs.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:  # a PNG is compressed already
        for name, data in image_files(images, labels, names, settings):
            opened.writestr(name, data)
    files.write_file(path, buffer.getvalue())
