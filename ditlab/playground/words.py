"""Where the patches of an image attend to the words of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ditlab.errors import UserError
from ditlab.pipelines import single
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.figures import render, subplots
from ditlab.playground.inspection import Inspection

MAX_WORDS, COLUMNS = 23, 6  # of a figure


def words_of(inspection: Inspection) -> list[str]:
    """The tokens of the prompt; of a prompt without tokens one, the network's null."""
    text = inspection.model.text
    return (text.tokens(inspection.prompt) if text is not None else []) or ["no prompt"]


def word_attention(inspection: Inspection, t: float) -> np.ndarray:
    """Attention weights of every patch on each word of the prompt in each block at t, the mean over heads.

    In blocks whose patches attend to text and patches together, the rest of the attention goes to patches.

    Returns:
        float32 (blocks, words, rows, columns).

    Raises:
        UserError: a model of labels, or blocks that do not attend to words.
    """
    network, (rows, columns) = inspection.network, inspection.patches
    if inspection.model.text is None:
        raise UserError("this model takes no prompts")
    if not network.design.text and network.design.adaptive:
        raise UserError(f"blocks of type {network.config.block} take the prompt as one vector and attend to no word")
    words, blocks = inspection.condition.entries["text"].value.shape[1], list[Any](network.blocks)
    modules = [getattr(block, "cross_attention", None) or block.attention for block in blocks]
    found = run_on_compute_thread(
        inspection.attention_weights, modules, t, lambda each: each[0, :, : rows * columns, -words:].mean(dim=0)
    )
    return np.stack(found).transpose(0, 2, 1).reshape(len(blocks), words, rows, columns)


def words_figure(inspection: Inspection, attention: np.ndarray) -> Image.Image:
    """The image, and over it the attention on each word, the mean over heads and blocks."""
    names = [f"{word[:16]!r}" for word in words_of(inspection)]
    return _maps(inspection.image, attention.mean(axis=0)[:MAX_WORDS], names)


def word_figure(inspection: Inspection, attention: np.ndarray, word: int) -> Image.Image:
    """The image, and over it the attention on one word in each block, the mean over heads.

    Raises:
        UserError: no such word.
    """
    if not 0 <= word < attention.shape[1]:
        raise UserError(f"word {word} is out of range; this prompt has words 0 to {attention.shape[1] - 1}")
    return _maps(inspection.image, attention[:, word], [f"block {k}" for k in range(len(attention))])


def _maps(image: np.ndarray, maps: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Maps (N, rows, columns) over an image, with names and means; the image alone comes first."""
    figure, axes = subplots(max(len(maps) + 1, COLUMNS), COLUMNS, 1.8)  # of one width, however many maps
    height, width = image.shape[:2]
    axes[0].imshow(single(image).convert("RGB"))
    axes[0].set_title("image", fontsize=9)
    for axis, values, name in zip(axes[1:], maps, names, strict=False):
        axis.imshow(single(image).convert("L"), cmap="gray", vmin=0, vmax=255)
        axis.imshow(values, cmap="viridis", vmin=0, alpha=0.75, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axis.set_title(f"{name} {values.mean():.1%}", fontsize=9, parse_math=False)  # a word is no formula
    for axis in axes:
        axis.set_axis_off()
    return render(figure)
