"""``ditlab import``: a model folder from a checkpoint of other code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ditlab.encoders.text_frozen import TEXT_ENCODER
from ditlab.errors import UserError
from ditlab.interop import diffusers_pipeline, official, pixart
from ditlab.interop.assemble import assemble, load_vae
from ditlab.interop.checkpoint import DIFFUSERS, folder_weights, read_weights
from ditlab.interop.find import find_folder
from ditlab.interop.settings import Choices
from ditlab.models import TextConfig
from ditlab.models.network import describe
from ditlab.pipelines import Pipeline
from ditlab.runtime.console import log_nothing

VAE = "stabilityai/sd-vae-ft-ema"
Log = Callable[[str], None]


def import_model(
    source: str,
    out: Path,
    vae: str = "",
    choices: Choices | None = None,
    *,
    text: str = "",
    force: bool = False,
    log: Log = log_nothing,
) -> Path:
    """Write a ditlab model into the folder ``out``; returns it.

    Args:
        source: a .pt or .safetensors, a folder of a DiTPipeline or PixArt's pipeline, of its transformer alone or of one file
            of weights, or the hub id of one.
        out: the new model's folder.
        vae: a folder or hub id of a VAE, or ``pixels``; empty: the pipeline's own, else Stable Diffusion's.
        choices: what the checkpoint does not say.
        text: a folder or hub id of the text encoder of a network of prompts; empty: the pipeline's own.
        force: replace a model in ``out``.
        log: called with what was read, chosen and guessed, line by line.

    Raises:
        UserError: source, VAE or text encoder cannot be read, or ``out`` contains a model and ``force`` is off.
    """
    if (out / "model.json").exists() and not force:
        raise UserError(f"{out} already contains a model; choose another folder or use --force")
    path, choices = Path(source), choices or Choices()
    if not path.is_file():
        path = find_folder(source)
    whole = (path / diffusers_pipeline.INDEX).is_file()
    if whole and pixart.is_pipeline(diffusers_pipeline.record(path / diffusers_pipeline.INDEX)):
        diffusers_pipeline.check_scheduler(path)
        found = _network(path / "transformer", choices)
        autoencoder = load_vae(found.network, vae) if vae else load_vae(found.network, str(path), "vae")
        text = text or (str(path / TEXT_ENCODER) if (path / TEXT_ENCODER).is_dir() else "")
    elif whole:
        _refuse_text(text, path)
        model = _of_pipeline(path, vae, choices)
        log(f"network: {describe(model.network.config)}")
        model.save(out)
        return out
    else:
        found = _network(path, choices)
        autoencoder = load_vae(found.network, vae or VAE)
    for note in (f"network: {describe(found.network.config)}", *found.notes):
        log(note)
    if not (vae or whole):
        log(f"autoencoder: {VAE}, assumed; else give --vae")
    encoder = None
    if not any(isinstance(condition, TextConfig) for condition in found.network.spec.conditions):
        _refuse_text(text, path)
    elif text:
        encoder = pixart.text_encoder(found, text)
        log(f"text encoder: {text}")
    else:
        log(f"text encoder: none, so no prompts and no guidance; give --text, for PixArt-alpha {pixart.TEXT}")
    assemble(found, autoencoder, [], found.defaults, path.name, encoder).save(out)
    return out


def _refuse_text(text: str, path: Path) -> None:
    if text:
        raise UserError(f"{path} is a network of classes, which has no text encoder; omit --text")


def _network(path: Path, choices: Choices) -> official.Imported:
    """The network in a file, or in a folder of one network."""
    folder = path if path.is_dir() else path.parent
    weights = folder_weights(path) if path.is_dir() else read_weights(path)
    if not weights.diffusers:
        layout = pixart if pixart.MARK in weights.tensors else official
        return layout.imported(weights, path, choices)
    if not (folder / diffusers_pipeline.CONFIG).is_file():
        raise UserError(
            f"{path} has the weights of a transformer of diffusers ({DIFFUSERS}); the config.json that belongs to it is "
            "missing next to it"
        )
    config = diffusers_pipeline.record(folder / diffusers_pipeline.CONFIG)
    if config.get("_class_name") == pixart.TRANSFORMER:
        return pixart.read_transformer(folder, config)
    return diffusers_pipeline.read_transformer(folder)


def _of_pipeline(folder: Path, vae: str, choices: Choices) -> Pipeline:
    """The model in a folder of a DiTPipeline, with another VAE where one is given."""
    if choices != Choices():
        raise UserError(f"{folder} is a DiTPipeline, which says its heads, classes and process; omit those flags")
    model = diffusers_pipeline.read(folder)
    if not vae:
        return model
    return Pipeline(
        model.network, model.diffusion, load_vae(model.network, vae), model.names, model.defaults, model.facts
    )
