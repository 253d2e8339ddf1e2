"""The text encoder of a recipe, and the captions of its images as the network reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import TaskID

from ditlab.data import Dataset, Images
from ditlab.data.dataset import caption_digest
from ditlab.encoders import (
    EncodedCaptions,
    LatentCache,
    TextCache,
    TextEncoder,
    TextEncoderConfig,
    build_text_encoder,
    different_texts,
    encode_texts,
)
from ditlab.errors import UserError
from ditlab.recipes.prepare import RunContext, locked
from ditlab.recipes.recipe import Recipe
from ditlab.runtime.console import progress_bar

PROMPTS = 16  # captions that a model is sampled with where no prompt is given


def text_encoder(config: TextEncoderConfig, dataset: Dataset) -> TextEncoder | None:
    """The encoder that a recipe asks for, made for the captions of these images; None for a network of labels.

    Raises:
        UserError: the images have no captions, or the encoder is not there.
    """
    config.check()
    if config.kind == "none":
        return None
    if dataset.captions is None:
        raise UserError(f"{dataset.info.title} has no captions; give captions (docs/data.md), or --text.kind none")
    return build_text_encoder(config, [text for each in dataset.captions for text in each])


def captions_of(data: Images | LatentCache, dataset: Dataset) -> Sequence[tuple[str, ...]]:
    """The captions of the images that could be read."""
    if isinstance(data, Images):
        return data.captions or [()] * len(data)
    captions = dataset.captions or [()] * len(dataset)
    return [captions[index] for index in data.indices.tolist()]


def captions_folder(recipe: Recipe, context: RunContext) -> Path:
    """Folder of the recipe's encoded captions."""
    return Path(recipe.text.cache) if recipe.text.cache else context.sibling("captions")


def encode_captions(
    recipe: Recipe,
    context: RunContext,
    captions: Sequence[tuple[str, ...]],
    prompts: Sequence[str],
    encoder: TextEncoder,
) -> TextCache | None:
    """Encode what is missing of the captions in the recipe's cache, and open it; None for an encoder without weights.

    The prompts of sample pictures are encoded too, and then the memory of the weights is freed.

    Raises:
        UserError: the folder holds other captions, or those of another encoder, or the disk is full.
    """
    if not encoder.features:
        return None
    folder, texts = captions_folder(recipe, context), different_texts(captions) or [""]
    with locked(folder, "the captions", context.processes), progress_bar(shown=context.processes.is_main) as bar:
        tasks = list[TaskID]()

        def show(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task("encoding captions", rate=""))
            bar.update(tasks[0], completed=done, total=total)

        cache = encode_texts(texts, encoder, folder, progress=show, processes=context.processes)
    if context.processes.is_main:
        encoder.encode([*prompts, recipe.sample.negative])  # which it keeps
    encoder.release()
    longest = int(cache.lengths.max())
    context.log(
        f"captions: {len(texts):,}, the longest of {longest} tokens (at most {encoder.max_tokens}), in {folder}"
    )
    return cache


def encoded(
    captions: Sequence[tuple[str, ...]], encoder: TextEncoder | None, cache: TextCache | None = None
) -> EncodedCaptions | None:
    """Captions as a task reads them; None without an encoder."""
    return None if encoder is None else EncodedCaptions(captions, encoder, caption_digest(captions), cache)


def example_prompts(captions: Sequence[tuple[str, ...]]) -> list[str]:
    """Up to ``PROMPTS`` different captions, evenly spaced."""
    different = list(dict.fromkeys(each[0] for each in captions if each and each[0].strip()))
    return different[:: max(1, len(different) // PROMPTS)][:PROMPTS]
