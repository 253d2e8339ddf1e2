"""Patches, positions, timesteps and labels, against torch's own operations and formulas written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import text_entry
from torch import nn

from ditlab.models import Condition, Entry, TextConfig
from ditlab.models.condition_embedding import LabelEmbedding, TextEmbedding, TimestepEmbedding
from ditlab.models.layout import sincos_positions
from ditlab.models.tokens import Patching

small = st.integers(1, 4)


def image(n: int, c: int, h: int, w: int) -> torch.Tensor:
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(small, small, small, small, small)
def test_patches_are_torchs(n: int, c: int, rows: int, columns: int, patch: int) -> None:
    x = image(n, c, rows * patch, columns * patch)
    assert torch.equal(Patching(patch).to_tokens(x).x, F.unfold(x, patch, stride=patch).transpose(1, 2))


@settings(max_examples=60, deadline=None)
@given(small, small, small, small, small)
def test_to_sample_puts_every_pixel_back(n: int, c: int, rows: int, columns: int, patch: int) -> None:
    x = image(n, c, rows * patch, columns * patch)
    patching = Patching(patch)
    tokens = patching.to_tokens(x)  # channel slowest
    output = (
        tokens.x.unflatten(2, (c, patch * patch)).transpose(2, 3).flatten(2)
    )  # channel fastest, as networks predict
    folded = F.fold(tokens.x.transpose(1, 2), (rows * patch, columns * patch), patch, stride=patch)
    for expected in (x, folded):
        assert torch.equal(patching.to_sample(replace(tokens, x=output)), expected)  # type: ignore[arg-type]


def test_a_linear_on_patches_is_a_strided_convolution() -> None:
    x, weight = image(2, 3, 8, 12), image(16, 3, 4, 4)
    expected = F.conv2d(x, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(Patching(4).to_tokens(x).x @ weight.flatten(1).T, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3), (4, 4), (1, 7)])
def test_positions_follow_the_formula_column_first(rows: int, columns: int) -> None:
    width = 24
    positions = sincos_positions(width, (rows, columns))
    assert positions.shape == (rows * columns, width)
    assert positions.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (2 * i / (width / 2)) for i in range(width // 4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            found = positions[row * columns + column]
            torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_positions_of_a_width_not_divisible_by_4_are_refused() -> None:
    with pytest.raises(ValueError, match="width 18"):
        sincos_positions(18, (2, 2))


def test_timesteps_are_cosines_first_of_256_frequencies() -> None:
    embedding = TimestepEmbedding(8)
    assert [layer.weight.shape for layer in embedding.mlp if isinstance(layer, nn.Linear)] == [(8, 256), (8, 8)]
    embedding.mlp = nn.Sequential()
    for t in (0.0, 1.0, 37.5, 999.0):
        angles = [t * math.exp(-math.log(10000) * i / 128) for i in range(128)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        torch.testing.assert_close(embedding(torch.tensor([t]))[0, 0], torch.tensor(expected), atol=2e-4, rtol=0)
    zero = embedding(torch.zeros(1))[0, 0]
    assert torch.equal(zero, torch.cat([torch.ones(128), torch.zeros(128)]))


def labels_entry(*labels: int) -> Entry:
    return Condition.of_labels(torch.tensor(labels, dtype=torch.int64)).entries["labels"]


@pytest.mark.parametrize("classes", [0, 1, 10])
def test_the_null_label_is_the_last_row(classes: int) -> None:
    embedding = LabelEmbedding(classes, 6)
    assert embedding.table.weight.shape == (classes + 1, 6)
    null = embedding(Condition.of_labels(torch.zeros(3, dtype=torch.int64)).null().entries["labels"])
    assert torch.equal(null, embedding.table.weight[-1].expand(3, 6))
    assert torch.equal(embedding(labels_entry(*range(classes))), embedding.table.weight[:classes])


def test_without_a_null_class_there_is_no_row_for_it() -> None:
    embedding = LabelEmbedding(10, 6, null=False)
    assert embedding.table.weight.shape == (10, 6)
    assert torch.equal(embedding(labels_entry(*range(10))), embedding.table.weight)
    with pytest.raises(IndexError):
        embedding(labels_entry(-1))


def test_conditions_drop_null_select_and_cat() -> None:
    condition = Condition.of_labels(torch.tensor([3, 1, 4, 1]))
    dropped = condition.drop(torch.tensor([False, True, False, True]))
    assert dropped.entries["labels"].present.tolist() == [True, False, True, False]
    assert condition.entries["labels"].present.all()
    assert not condition.null().entries["labels"].present.any()
    both = condition.cat(dropped)
    assert both.entries["labels"].value.tolist() == [3, 1, 4, 1] * 2
    assert both.entries["labels"].present.tolist() == [True] * 4 + [True, False, True, False]
    assert both.select(slice(5, 7)).entries["labels"].present.tolist() == [False, True]


def test_structural_entries_stay_when_guided_ones_are_dropped() -> None:
    low = Entry(torch.ones(2, 3, 4, 4), torch.ones(2, dtype=torch.bool), guided=False)
    condition = Condition.of_labels(torch.tensor([0, 1])).replace(low=low)
    null = condition.null()
    assert null.entries["low"].present.all()
    assert not null.entries["labels"].present.any()
    assert condition.drop(torch.tensor([True, False])).entries["low"].present.all()


def test_texts_of_two_lengths_form_one_batch() -> None:
    def text(length: int) -> Condition:
        mask = torch.ones(1, length, dtype=torch.bool)
        return Condition({"text": Entry(torch.full((1, length, 2), float(length)), mask[:, 0], mask)})

    entry = text(2).cat(text(5)).entries["text"]
    assert entry.mask is not None
    assert entry.mask.sum(dim=1).tolist() == [2, 5]
    assert entry.value[0, 2:].eq(0).all()
    with pytest.raises(ValueError, match=r"\['text'\] and of \['labels'\]"):
        text(2).cat(Condition.of_labels(torch.tensor([0])))


@pytest.mark.parametrize("padded", [2, 4, 9])
def test_an_absent_text_is_the_tokens_of_the_null_and_a_present_one_is_padded_to_as_many(padded: int) -> None:
    embedding = TextEmbedding(TextConfig(features=6, projection="mlp", null_tokens=4), 8)
    nn.init.normal_(embedding.null, generator=torch.Generator().manual_seed(0))
    entry = text_entry((2, 0, 1), padded)
    assert entry.mask is not None
    tokens, mask, pooled = embedding(replace(entry, present=torch.tensor([True, True, False])))
    assert pooled is not None
    assert tokens.shape == (3, max(padded, 4), 8)
    assert mask.sum(dim=1).tolist() == [2, 4, 4]
    assert torch.equal(tokens[1:, :4], embedding.null.expand(2, 4, 8))
    first, second = embedding.projection[0], embedding.projection[2]  # type: ignore[index]
    projected = second(F.gelu(first(entry.value[0, :2]), approximate="tanh"))
    torch.testing.assert_close(tokens[0, :2], projected)
    assert embedding.pooled is not None
    torch.testing.assert_close(pooled[0], embedding.pooled(projected.mean(dim=0)))
    torch.testing.assert_close(pooled[2], embedding.pooled(embedding.null.mean(dim=0)))
