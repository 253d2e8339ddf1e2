"""``ditlab inspect``: parameters, multiply-accumulates and training memory, next to the paper's figures."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from ditlab.data import open_data
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import autoencoder_kind
from ditlab.errors import UserError, check_divisible
from ditlab.models import (
    UNETS,
    Cost,
    DiTConfig,
    LatentSpec,
    NetworkConfig,
    NetworkSpec,
    TextConfig,
    UNetConfig,
    cost,
    labelled,
)
from ditlab.models.blocks import BLOCKS
from ditlab.pipelines import Pipeline
from ditlab.recipes.captions import text_encoder
from ditlab.recipes.find import find_recipe
from ditlab.recipes.recipe import network_spec
from ditlab.train import TrainConfig
from ditlab.train.memory import Sharing, Subject, checkpoint_bytes, kept_bytes, training_memory

# Table 1, figure 5 and section 5 of the paper: its "Gflops", and millions of parameters, at 256 pixels.
PAPER = {
    "S/8": (0.36, 33), "S/4": (1.41, 33), "S/2": (6.06, 33), "B/8": (1.42, 131), "B/4": (5.56, 130), "B/2": (23.01, 130),
    "L/8": (5.01, 459), "L/4": (19.70, 458), "L/2": (80.71, 458), "XL/8": (7.39, 676), "XL/4": (29.05, 675),
    "XL/2": (118.64, 675),
}  # fmt: skip
PAPER_BLOCKS = {"in-context": (119.37, 449), "cross-attention": (137.62, 598), "adaln": (118.56, 600)}
PAPER_512 = (524.60, 675)
# The U-Nets it compares with: its "Gflops" (appendix), and millions of parameters from their own papers.
PAPER_UNETS = {"ADM-128": (307, 422), "ADM-256": (1120, 554), "ADM-512": (1983, 559), "LDM-4": (103.6, 400)}
# Their image size, the factor and channels of their latents, and whether they learn the variance.
UNET_INPUTS = {
    "unet": (32, 1, 3, False), "ADM-128": (128, 1, 3, True), "ADM-256": (256, 1, 3, True), "ADM-512": (512, 1, 3, True),
    "LDM-4": (256, 4, 3, False),
}  # fmt: skip

# A text of a published DiT: tokens where none are given, and the width of an encoder's features (MiniLM's).
TEXT_TOKENS, TEXT_FEATURES = 32, 384

HOW = ("microbatch", "precision", "activation_checkpointing")
SHARINGS = {"one": "one GPU", "ddp": "DDP", "fsdp": "FSDP2"}
MEMORY = {
    "weights": "weights, float32",
    "gradients": "gradients, float32",
    "moments": "AdamW's two moments",
    "average": "EMA of the weights",
    "weights_bf16": "bfloat16 copies of weights",
    "gathered": "gathered: two blocks and the rest outside blocks",
    "activations": "kept for the backward pass",
}


def paper_figure(name: str, image: int, block: str) -> tuple[float, int] | None:
    """The paper's (GMACs, millions of parameters) of a model at an image size, if it gives them."""
    short = name.upper().removeprefix("DIT-")
    if block != "adaln-zero":
        return PAPER_BLOCKS.get(block) if (short, image) == ("XL/2", 256) else None
    if image == 256:
        return PAPER.get(short)
    return PAPER_512 if (short, image) == ("XL/2", 512) else None


def _published_subject(
    config: NetworkConfig, image: int, factor: int, channels: int, diffusion: DiffusionConfig, text: int = 0
) -> Subject:
    """A published network of ImageNet's 1,000 classes, or of a text of so many tokens."""
    check_divisible("images", (image, image), factor, f"the VAE's factor {factor}")
    latent = LatentSpec(channels, (image // factor, image // factor))
    spec = labelled(latent, 1000, learned_variance=diffusion.learned_variance)
    if text:
        spec = NetworkSpec(latent, (TextConfig(features=TEXT_FEATURES, tokens=text),), diffusion.learned_variance)
    return Subject(config, spec, diffusion)


def _subject(name: str, image: int, block: str, text: int) -> tuple[Subject, tuple[float, int] | None]:
    """The network of ``name`` with its inputs, and the paper's figures of it."""
    if not Path(name).exists():
        if unet := next((known for known in UNETS if known.lower() == name.lower()), None):
            if block != "adaln-zero" or text:
                flag = f"--text {text}" if text else f"--block {block}"
                raise UserError(f"{unet} is a U-Net; {flag} is for DiTs only")
            own, factor, channels, learned_variance = UNET_INPUTS[unet]
            diffusion = DiffusionConfig(learned_variance=learned_variance)
            subject = _published_subject(UNetConfig.named(unet), image or own, factor, channels, diffusion)
            return subject, PAPER_UNETS.get(unet) if image in (0, own) else None
        if "/" in name:
            image = image or 256
            if block in BLOCKS and BLOCKS[block].text:
                text = text or TEXT_TOKENS
            config = DiTConfig.named(name, block=block)
            subject = _published_subject(config, image, 8, 4, DiffusionConfig(), text)
            return subject, None if text else paper_figure(name, image, block)
    if (Path(name) / "model.json").exists() or name.endswith(".safetensors"):
        model = Pipeline.load(name)
        return Subject(model.network.config, model.network.spec, model.diffusion), None
    recipe, _ = find_recipe(name)
    latent_shape = autoencoder_kind(recipe.autoencoder.kind).latent_shape
    if latent_shape is None or (recipe.data.source in ("folder", "archive", "parquet") and not recipe.data.path):
        raise UserError(
            f"the images or the VAE of recipe {name!r} are not known yet; inspect a model such as DiT-XL/2, or a run"
        )
    dataset = open_data(recipe.data)
    shape, encoder = latent_shape(recipe.autoencoder, dataset.shape), text_encoder(recipe.text, dataset)
    spec = network_spec(recipe, shape, len(dataset.names), encoder)
    return Subject(recipe.model, spec, recipe.diffusion), None


def inspect_model(model: str, image: int, block: str, train: TrainConfig, gpus: int, json: bool, text: int = 0) -> None:
    """Print the cost of a published model, a recipe or a run folder, and its memory in training, as tables or as JSON.

    Image size (0: its own), block design and text tokens (0: class labels) are of a published model; ``gpus`` share a step.
    Raises UserError for an unknown model, or a size or batch that is not divisible.
    """
    subject, paper = _subject(model, image, block, text)
    counted, sharings = cost(subject.config, subject.shape), training_memory(subject, train, gpus)
    an_image = {
        name: kept_bytes(subject, 1, train.precision == "bf16", recompute)[0]
        for name, recompute in (("all", False), ("activation_checkpointing", True))
    }
    on_disk = checkpoint_bytes(subject.network())
    if json:
        parts = {
            part: {"parameters": count, "gmacs": counted.macs.get(part, 0) / 1e9}
            for part, count in counted.parameters.items()
        }
        training = {
            "how": {"batch": train.batch, "gpus": gpus, **{name: getattr(train, name) for name in HOW}},
            "flops_an_image": 6 * sum(counted.macs.values()),
            "activation_bytes_an_image": an_image,
            "memory_bytes_a_gpu": {name: sharing.memory for name, sharing in sharings.items()},
            "traffic_bytes_a_step": {name: sharing.traffic for name, sharing in sharings.items()},
            "checkpoint_bytes": on_disk,
        }
        totals = {"parameters": counted.total_parameters, "gmacs": counted.gmacs, "tokens": counted.tokens}
        published = {"paper": {"gmacs": paper[0], "parameters": paper[1] * 1_000_000}} if paper else {}
        print(dumps({"model": model, **totals, "parts": parts, "training": training, **published}, indent=2))
        return
    console, share = Console(), train.batch // gpus
    console.print(_parts(model, counted, paper))
    console.print('GMACs: 1e9 multiply-accumulates of one forward pass of one sample, the paper\'s "Gflops".\n')
    how = f"batch {train.batch} on {gpus}, {min(train.microbatch or share, share)} images at a time, {train.precision}"
    console.print(_memory(how + ", activation checkpointing" * train.activation_checkpointing, sharings))
    console.print(
        f"Activations of one image: {an_image['all'] / 2**20:.1f} MiB, "
        f"{an_image['activation_checkpointing'] / 2**20:.1f} with --activation-checkpointing; counted without "
        "torch.compile, which keeps less. Not counted: the allocator, CUDA itself, and kernel workspaces."
    )
    console.print(f"A checkpoint takes {on_disk / 1e9:.3g} GB: weights, EMA and two moments of every parameter.")


def _table(title: str, first: str, *numbers: str) -> Table:
    return Table(first, *(Column(name, justify="right") for name in numbers), title=title, title_justify="left")


def _parts(name: str, counted: Cost, paper: tuple[float, int] | None) -> Table:
    tokens = f": {counted.tokens:,} tokens" if counted.tokens else ""
    table = _table(f"{name}{tokens}", "part", "parameters", "GMACs")
    for part, count in counted.parameters.items():
        table.add_row(part, f"{count:,}", f"{counted.macs.get(part, 0) / 1e9:.4f}")
    table.add_section()
    table.add_row("in all", f"{counted.total_parameters:,}", f"{counted.gmacs:.4f}")
    if paper:
        gmacs, millions = paper
        table.add_row("the paper", f"{millions} M", f"{gmacs:.2f} ({100 * (counted.gmacs / gmacs - 1):+.2f}%)")
    return table


def _memory(how: str, sharings: dict[str, Sharing]) -> Table:
    sums = [sum(sharing.memory.values()) for sharing in sharings.values()]
    unit, name = (2**30, "GiB") if max(sums) >= 2**30 else (2**20, "MiB")
    titles = [SHARINGS[kind] for kind in sharings]
    table = _table(f"training memory of a GPU, {name}, computed: {how}", "what", *titles)
    for key, what in MEMORY.items():
        row = [sharing.memory.get(key, 0) for sharing in sharings.values()]
        if any(row):
            table.add_row(what, *(f"{value / unit:.2f}" for value in row))
    table.add_section()
    table.add_row("in all", *(f"{total / unit:.2f}" for total in sums))
    return table
