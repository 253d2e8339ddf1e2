"""``ditlab inspect``: parts, parameters, multiply-accumulates and memory, beside the paper's figure where there is one."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ditlab.data import open_data
from ditlab.errors import UserError
from ditlab.models import Cost, DiTConfig, NetworkInput, cost
from ditlab.recipes.find import find_recipe
from ditlab.sample import Model

# Table 1, figure 5 and section 5 of the paper: its "Gflops", and millions of parameters, at 256 pixels.
PAPER = {
    "S/8": (0.36, 33), "S/4": (1.41, 33), "S/2": (6.06, 33), "B/8": (1.42, 131), "B/4": (5.56, 130), "B/2": (23.01, 130),
    "L/8": (5.01, 459), "L/4": (19.70, 458), "L/2": (80.71, 458), "XL/8": (7.39, 676), "XL/4": (29.05, 675),
    "XL/2": (118.64, 675),
}  # fmt: skip
PAPER_BLOCKS = {"in-context": (119.37, 449), "cross-attention": (137.62, 598), "adaln": (118.56, 600)}
PAPER_512 = (524.60, 675)


def paper_figure(name: str, image: int, block: str) -> tuple[float, int] | None:
    """The paper's (GMACs, millions of parameters) of a model at an image size, where it gives them."""
    short = name.upper().removeprefix("DIT-")
    if block != "adaln-zero":
        return PAPER_BLOCKS.get(block) if (short, image) == ("XL/2", 256) else None
    if image == 256:
        return PAPER.get(short)
    return PAPER_512 if (short, image) == ("XL/2", 512) else None


def _cost(name: str, image: int, block: str) -> tuple[Cost, tuple[float, int] | None]:
    if "/" in name and not Path(name).exists():
        if image < 8 or image % 8:
            below = max(image // 8 * 8, 8)
            raise UserError(
                f"image {image} is not divisible by the VAE's factor 8; nearest sizes: {below} or {below + 8}"
            )
        shape = NetworkInput(4, image // 8, image // 8, classes=1000, learned_variance=True)
        return cost(DiTConfig.named(name, block=block), shape), paper_figure(name, image, block)
    if (Path(name) / "model.json").exists() or name.endswith(".safetensors"):
        network = Model.load(name).network
        return cost(network.config, network.input), None
    recipe, _ = find_recipe(name)
    kind = recipe.autoencoder.kind
    if kind == "pretrained" or (recipe.data.source in ("folder", "archive", "parquet") and not recipe.data.path):
        raise UserError(
            f"recipe {name!r} does not know its images or its VAE yet; inspect DiT-XL/2, or the run it made"
        )
    dataset = open_data(recipe.data)
    channels, height, width = dataset.shape
    factor = recipe.autoencoder.factor if kind == "kl" else 1
    channels = recipe.autoencoder.latent_channels if kind == "kl" else channels
    shape = NetworkInput(
        channels, height // factor, width // factor, len(dataset.names), recipe.diffusion.learned_variance
    )
    return cost(recipe.model, shape), None


def inspect_model(name: str, image: int, block: str, as_json: bool) -> None:
    """Print what a model costs, as a table or as JSON.

    Args:
        name: a model of the paper, a recipe, or a run folder.
        image: side of the image in pixels, for models of the paper.
        block: design, for models of the paper.
        as_json: print JSON with at least ``parameters``, ``gmacs`` and ``tokens``.

    Raises:
        UserError: unknown model, or an image no latent fits.
    """
    counted, paper = _cost(name, image, block)
    total = counted.total_parameters
    memory = {"weights_fp32": 4 * total, "training_state_fp32": 20 * total}  # weights, gradients, two moments, average
    if as_json:
        parts = {
            part: {"parameters": count, "gmacs": counted.macs.get(part, 0) / 1e9}
            for part, count in counted.parameters.items()
        }
        result: dict[str, object] = {
            "model": name,
            "parameters": total,
            "gmacs": counted.gmacs,
            "tokens": counted.tokens,
        }
        result |= {"parts": parts, "bytes": memory}
        if paper:
            result["paper"] = {"gmacs": paper[0], "parameters": paper[1] * 1_000_000}
        print(json.dumps(result, indent=2))
        return
    table = Table(title=f"{name}: {counted.tokens:,} tokens", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("GMACs", justify="right")
    for part, count in counted.parameters.items():
        table.add_row(part, f"{count:,}", f"{counted.macs.get(part, 0) / 1e9:.4f}")
    table.add_section()
    table.add_row("in all", f"{total:,}", f"{counted.gmacs:.4f}")
    if paper:
        gmacs, millions = paper
        table.add_row("the paper", f"{millions} M", f"{gmacs:.2f} ({100 * (counted.gmacs / gmacs - 1):+.2f}%)")
    console = Console()
    console.print(table)
    console.print('GMACs: 1e9 multiply-accumulates of one forward pass of one sample, the paper\'s "Gflops".')
    gigabytes = {key: value / 2**30 for key, value in memory.items()}
    console.print(
        f"Memory: weights {gigabytes['weights_fp32']:.2f} GiB; training state in fp32 (weights, gradients, AdamW, EMA) "
        f"{gigabytes['training_state_fp32']:.2f} GiB, activations not counted."
    )
