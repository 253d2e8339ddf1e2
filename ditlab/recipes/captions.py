"""The text encoder of a recipe, and the captions of its images as the network reads them."""

from __future__ import annotations

from collections.abc import Sequence

from ditlab.data import Dataset, Images
from ditlab.data.dataset import caption_digest
from ditlab.encoders import EncodedCaptions, LatentCache, TextEncoder, build_text_encoder
from ditlab.errors import UserError
from ditlab.recipes.recipe import Recipe

PROMPTS = 16  # captions that a model is sampled with where no prompt is given


def text_encoder(recipe: Recipe, dataset: Dataset) -> TextEncoder | None:
    """The encoder that the recipe asks for, made for the captions of these images; None for a network of labels.

    Raises:
        UserError: the images have no captions, or the encoder is not there.
    """
    recipe.text.check()
    if recipe.text.kind == "none":
        return None
    if dataset.captions is None:
        raise UserError(f"{dataset.info.title} has no captions; give captions (docs/data.md), or --text.kind none")
    return build_text_encoder(recipe.text, [text for each in dataset.captions for text in each])


def captions_of(data: Images | LatentCache, dataset: Dataset) -> Sequence[tuple[str, ...]]:
    """The captions of the images that could be read."""
    if isinstance(data, Images):
        return data.captions or [()] * len(data)
    captions = dataset.captions or [()] * len(dataset)
    return [captions[index] for index in data.indices.tolist()]


def encoded(captions: Sequence[tuple[str, ...]], encoder: TextEncoder | None) -> EncodedCaptions | None:
    """Captions as a task reads them; None without an encoder."""
    return None if encoder is None else EncodedCaptions(captions, encoder, caption_digest(captions))


def example_prompts(captions: Sequence[tuple[str, ...]]) -> list[str]:
    """Up to ``PROMPTS`` different captions, evenly spaced."""
    different = list(dict.fromkeys(each[0] for each in captions if each and each[0].strip()))
    return different[:: max(1, len(different) // PROMPTS)][:PROMPTS]
