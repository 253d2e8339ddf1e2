"""The tokenizer made from captions, and captions read by image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ditlab.encoders import EncodedCaptions, TextEncoderConfig, build_text_encoder, restore_text_encoder
from ditlab.encoders.text_tokens import WordTokens, split_words
from ditlab.errors import UserError

CAPTIONS = ["A red circle.", "a blue square left of a red circle", "two red circles", "深い青"]


def words_of(text: str) -> list[str]:
    return list(split_words(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red circle.", ["a", "red", "circle", "."]),
        ("don't   stop", ["don", "'", "t", "stop"]),
        ("ＦＵＬＬ width 12", ["full", "width", "12"]),
        ("深い青", ["深", "い", "青"]),
        ("cafe\u0301", ["café"]),
        ("<b>red</b>\x00\x1b[31m", ["<", "b", ">", "red", "<", "/", "b", ">", "[", "31m"]),
        ("👍🏽", ["👍", "🏽"]),
        ("красный круг", ["красный", "круг"]),
        (" \t\n\u200b\ufeff", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_the_most_frequent_words_are_kept() -> None:
    encoder = WordTokens.build(TextEncoderConfig("tokens", vocabulary=3), CAPTIONS)
    assert encoder.words == ("a", "red", "circle")
    assert encoder.vocabulary == 4
    assert encoder.max_tokens == 8  # of the longest caption
    assert WordTokens.build(TextEncoderConfig("tokens", max_tokens=5), CAPTIONS).max_tokens == 5


def test_a_text_is_encoded_as_if_it_were_alone() -> None:
    encoder = WordTokens.build(TextEncoderConfig("tokens"), CAPTIONS)
    together = encoder.encode([*CAPTIONS, "", "unknown"])
    assert together.mask.sum(dim=1).tolist() == [4, 8, 3, 3, 0, 0]
    for row, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        assert torch.equal(alone.value[0], together.value[row][together.mask[row]])
        assert [encoder.words[each - 1] for each in alone.value[0]] == words_of(caption)
    assert encoder.encode([""]).value.shape == (1, 1)


def test_an_encoder_is_restored_from_its_record() -> None:
    encoder = build_text_encoder(TextEncoderConfig("tokens"), CAPTIONS)
    assert encoder is not None
    again = restore_text_encoder(json.loads(json.dumps(encoder.record())))
    assert again is not None
    assert torch.equal(again.encode(CAPTIONS).value, encoder.encode(CAPTIONS).value)
    assert again.max_tokens == encoder.max_tokens
    with pytest.raises(UserError, match="unknown text encoder 'token'; did you mean 'tokens'"):
        restore_text_encoder({"kind": "token"})


def test_what_of_a_text_is_not_used_is_noted() -> None:
    encoder = WordTokens.build(TextEncoderConfig("tokens", max_tokens=3), CAPTIONS)
    assert encoder.notes("a red circle") == []
    assert encoder.notes("a mauve circle, a mauve square") == [
        "words that no training caption has are skipped: 'mauve', ','",
        "the first 3 words are used, of 4 that are known",
    ]
    unknown, nothing = encoder.notes(" ".join(f"word{k}" for k in range(20)) + "x" * 5000)
    assert unknown.endswith("'word7' and 12 more")
    assert len(unknown) < 200
    assert nothing == "no known word is left: the image is made without a prompt"


@pytest.mark.parametrize("captions", [[], ["", " "]])
def test_captions_without_words_are_refused(captions: list[str]) -> None:
    with pytest.raises(UserError, match=r"no captions to make a vocabulary of.*--text.kind none"):
        build_text_encoder(TextEncoderConfig("tokens"), captions)


def test_captions_are_drawn_by_image() -> None:
    encoder = WordTokens.build(TextEncoderConfig("tokens"), CAPTIONS)
    images = [("a red circle",), (), ("two red circles", "a blue square"), ("",)]
    captions = EncodedCaptions(images, encoder)
    indices = np.array([2, 2, 1, 0, 3, 2])
    draws = torch.tensor([0.0, 0.49, 0.9, 0.99, 0.5, np.nextafter(1, 0, dtype=np.float32)])
    value, mask = captions.read(indices, draws)
    shown = [" ".join(encoder.words[each - 1] for each in row[m]) for row, m in zip(value, mask, strict=True)]
    assert shown == ["two red circles", "two red circles", "", "a red circle", "", "a blue square"]
    assert len(captions) == 4
    nothing = EncodedCaptions([(), ()], encoder).read(np.array([0, 1]), torch.zeros(2))
    assert not nothing.mask.any()
