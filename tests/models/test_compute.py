"""Counts are the paper's, and those of networks that are really built."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import image_spec, spec_of_block

from ditlab.errors import UserError
from ditlab.models import NAMES, Cost, DiT, DiTConfig, LatentSpec, NetworkSpec, TextConfig, cost
from ditlab.models.blocks import BLOCKS

LATENT_256 = image_spec(4, 32, 32, classes=1000, learned_variance=True)
LATENT_512 = image_spec(4, 64, 64, classes=1000, learned_variance=True)

# The paper's appendix: its "Gflops", which are GMACs of one forward pass of one sample, and parameters in millions.
PAPER = [
    ("S/8", 0.36, 33), ("S/4", 1.41, 33), ("S/2", 6.06, 33), ("B/8", 1.42, 131), ("B/4", 5.56, 130), ("B/2", 23.01, 130),
    ("L/8", 5.01, 459), ("L/4", 19.70, 458), ("L/2", 80.71, 458), ("XL/8", 7.39, 676), ("XL/4", 29.05, 675),
    ("XL/2", 118.64, 675),
]  # fmt: skip


@pytest.mark.parametrize(("name", "gmacs", "millions"), PAPER)
def test_each_model_counts_as_the_paper_says(name: str, gmacs: float, millions: int) -> None:
    counted = cost(DiTConfig.named(f"DiT-{name}"), LATENT_256)
    assert counted.gmacs == pytest.approx(gmacs, rel=0.006)
    assert round(counted.total_parameters / 1e6) == millions
    assert counted.tokens == (32 // int(name.split("/")[1])) ** 2


@pytest.mark.parametrize(
    ("block", "gmacs", "millions"),
    [
        ("in-context", 119.37, 449),
        ("cross-attention", 137.62, 598),
        ("adaln", 118.56, 600),
        ("adaln-zero", 118.64, 675),
    ],
)
def test_each_block_design_counts_as_the_paper_says(block: str, gmacs: float, millions: int) -> None:
    counted = cost(DiTConfig.named("XL/2", block=block), LATENT_256)
    assert counted.gmacs == pytest.approx(gmacs, rel=0.01)
    assert round(counted.total_parameters / 1e6) == millions


def test_xl2_at_512_counts_as_the_paper_says() -> None:
    counted = cost(DiTConfig.named("DiT-XL/2"), LATENT_512)
    assert counted.gmacs == pytest.approx(524.60, rel=0.01)
    assert counted.tokens == 1024


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [image_spec(3, 8, 12, classes=5), image_spec(1, 8, 8, 0, learned_variance=True)])
def test_parameters_are_those_of_the_built_network(block: str, shape: NetworkSpec) -> None:
    config, shape = DiTConfig(depth=3, width=24, heads=3, patch=2, block=block), spec_of_block(shape, block)
    counted, network = cost(config, shape), DiT(config, shape)
    assert counted.total_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert counted.total_parameters == sum(counted.parameters.values())
    assert counted.gmacs == pytest.approx(sum(counted.macs.values()) / 1e9)
    assert set(counted.macs) == set(counted.parameters)
    assert counted.tokens == shape.latent.size[0] * shape.latent.size[1] // 4


def test_multiply_accumulates_of_a_custom_size_are_those_of_paper_and_pencil() -> None:
    depth, width, inner, patch = 3, 40, 100, 4
    shape = image_spec(5, 8, 24, classes=7, learned_variance=True)
    counted = cost(DiTConfig(depth=depth, width=width, heads=5, patch=patch, mlp_ratio=2.5), shape)
    tokens, patch_size = 2 * 6, patch * patch * 5
    assert counted.tokens == tokens
    assert counted.macs == {
        "patch embedding": tokens * patch_size * width,
        "timestep embedding": 256 * width + width**2,  # once a sample, not once a token
        "labels embedding": 0,
        "blocks: attention": depth * (tokens * 4 * width**2 + 2 * tokens**2 * width),
        "blocks: mlp": depth * tokens * 2 * width * inner,
        "blocks: modulation": depth * 6 * width**2,
        "final layer": 2 * width**2 + tokens * width * 2 * patch_size,
    }


def test_in_context_blocks_run_over_two_tokens_more() -> None:
    shape = image_spec(4, 8, 8, classes=10)
    counted = cost(DiTConfig(depth=2, width=24, heads=3, block="in-context"), shape)
    assert counted.tokens == 16
    assert counted.macs["blocks: mlp"] == 2 * (16 + 2) * 8 * 24**2
    assert counted.macs["final layer"] == 16 * 24 * 16


@pytest.mark.parametrize("name", NAMES)
def test_names_are_the_papers(name: str) -> None:
    config = DiTConfig.named(name)
    assert config == DiTConfig.named(name.removeprefix("DiT-"))
    size, patch = name.removeprefix("DiT-").split("/")
    layers, hidden, heads = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}[size]
    assert (config.depth, config.width, config.heads, config.patch) == (layers, hidden, heads, int(patch))
    assert (config.block, config.mlp_ratio) == ("adaln-zero", 4)


@pytest.mark.parametrize("name", ["DiT-XXL/2", "XL", "DiT-S/0", "", "S/2/2"])
def test_an_unknown_name_is_one_line_that_says_it(name: str) -> None:
    with pytest.raises(UserError, match="unknown model") as caught:
        DiTConfig.named(name)
    assert repr(name) in str(caught.value)
    assert "DiT-S/2" in str(caught.value)
    assert "\n" not in str(caught.value)


def text_cost(block: str, length: int, shared_modulation: bool = False) -> Cost:
    spec = NetworkSpec(LatentSpec(4, (16, 16)), (TextConfig(features=6, tokens=length),))
    return cost(DiTConfig(depth=3, width=24, heads=3, block=block, shared_modulation=shared_modulation), spec)


def of_blocks(counts: dict[str, int]) -> int:
    """Of all parts of the blocks but the modulation."""
    return sum(
        count for part, count in counts.items() if part.startswith("blocks: ") and not part.endswith("modulation")
    )


# Of a block, for width d: weights in d^2, multiply-accumulates of an image token and of a text token in d^2.
TEXT_COSTS = {
    "adaln-zero": (12, 12, 0), "adaln-cross-attention": (16, 14, 2), "adaln-in-context": (12, 12, 12), "joint": (24, 12, 12),
}  # fmt: skip


@pytest.mark.parametrize("block", TEXT_COSTS)
def test_the_ways_of_text_count_as_their_formulas(block: str) -> None:
    d, depth, n, length = 24, 3, 64, 11
    weights, image, text = TEXT_COSTS[block]
    counted = text_cost(block, length)
    attention = {
        "adaln-zero": 2 * n * n * d,
        "adaln-cross-attention": 2 * n * (n + length) * d,
        "adaln-in-context": 2 * (n + length) ** 2 * d,
        "joint": 2 * (n + length) ** 2 * d,
    }[block]
    macs = depth * (n * image * d * d + length * text * d * d + attention)
    parameters = depth * weights * d * d
    if block == "joint":  # the last block computes keys and values of the text only
        macs -= length * 10 * d * d + 2 * length * (n + length) * d
        parameters -= 10 * d * d
    assert of_blocks(counted.macs) == macs
    biases = of_blocks(counted.parameters) - parameters
    assert 0 < biases <= depth * 18 * d
    vectors = depth * 6 if block != "joint" else 2 * 12 + 8
    assert counted.macs["blocks: modulation"] == vectors * d * d
    assert counted.parameters["blocks: modulation"] == vectors * d * (d + 1)
    assert counted.macs["text embedding"] == length * 6 * d + (0 if block == "adaln-cross-attention" else d * d)


@pytest.mark.parametrize("block", ["adaln-zero", "adaln", "adaln-cross-attention", "adaln-in-context", "joint"])
def test_shared_modulation_is_one_linear_and_a_table_a_block_and_in_the_final_layer(block: str) -> None:
    d, vectors = 24, {"adaln": 4, "joint": 12}.get(block, 6)
    counted = text_cost(block, 11, shared_modulation=True)
    last = 8 if block == "joint" else vectors
    assert counted.parameters["shared modulation"] == vectors * d * (d + 1)
    assert counted.macs["shared modulation"] == vectors * d * d
    assert counted.parameters["blocks: modulation"] == (2 * vectors + last) * d
    assert counted.macs["blocks: modulation"] == 0
    assert counted.parameters["final layer"] == 2 * d + (d + 1) * 16
    assert sum(counted.parameters.values()) == counted.total_parameters


def test_the_pages_counts_of_text_are_those_of_the_networks() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    lines = page.split("GMACs with shared modulation |\n")[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    assert {row[0] for row in rows} == set(BLOCKS) - {"adaln"}
    spec = NetworkSpec(LatentSpec(4, (32, 32)), (TextConfig(features=384, tokens=32),), learned_variance=True)
    for block, *counts in rows:
        for shared, pair in ((False, counts[:2]), (True, counts[2:])):
            if any(pair):
                counted = cost(DiTConfig.named("B/2", block=block, shared_modulation=shared), spec)
                assert pair == [f"{counted.total_parameters:,}", f"{counted.gmacs:.4f}"], block
