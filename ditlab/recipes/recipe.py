"""Recipes: the configurations of a run as one value, to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import AutoencoderConfig, RemoteCache, TextEncoder, TextEncoderConfig, autoencoder_kind
from ditlab.errors import UserError, nearest
from ditlab.models import DiTConfig, LatentSpec, NetworkConfig, NetworkSpec, labelled
from ditlab.models.condition_embedding import TextConfig
from ditlab.models.network import of_record, to_record
from ditlab.pipelines import SampleConfig
from ditlab.runtime import files
from ditlab.train import TrainConfig
from ditlab.train.checkpoint import existing

AUTOENCODER_TRAIN = TrainConfig(
    images=500_000,
    batch=64,
    lr=1e-3,
    warmup=0.02,
    cooldown=0.4,
    ema=0.998,
    log=6_400,
    checkpoint=32_000,
    samples=64_000,
)

R = TypeVar("R", bound="Recipe | AutoencoderRecipe")
AUTOENCODER_KIND = "autoencoder"  # of a recipe.json

# Fields of training that may change when a run is resumed: its length, its output, and how it is computed.
FREE = (
    "images", "log", "samples", "checkpoint", "keep_checkpoints", "compile", "parallel", "microbatch",
    "activation_checkpointing", "shard_size", "reshard_after_forward", "monitor_blocks", "timeout", "threads",
)  # fmt: skip

# Fields of a recipe.json written before version 0.2, by today's names.
RENAMED: dict[type, dict[str, str]] = {
    DiffusionConfig: {"label_dropout": "condition_dropout"},
    TrainConfig: {
        "rate": "lr", "clip": "max_grad_norm", "keep": "keep_checkpoints", "part": "microbatch",
        "recompute": "activation_checkpointing",
    },
}  # fmt: skip


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The configurations of an autoencoder's training; stored in its folder as recipe.json."""

    name: str = "custom"
    """Name of the data or of the recipe it belongs to."""
    seed: int = 0
    """Seed of weights, data order and noise."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(kind="kl"))
    """The autoencoder, of kind kl."""
    train: TrainConfig = field(default_factory=lambda: AUTOENCODER_TRAIN)
    """Training of the autoencoder."""

    def check(self, flags: str = "train") -> None:
        """Raise UserError for a value that is wrong for any images; ``flags`` is what the flags of training start with."""
        _check_seed(self.seed)
        if not autoencoder_kind(self.autoencoder.kind).trained:
            kind = self.autoencoder.kind
            raise UserError(f"recipe {self.name!r} has no autoencoder to train: its kind is {kind!r}, not 'kl'")
        self.train.check(flags)
        if self.train.activation_checkpointing or self.train.parallel == "fsdp":
            raise UserError(
                f"--{flags}.activation-checkpointing and --{flags}.parallel fsdp are for diffusion networks only; omit them"
            )

    def to_json(self) -> str:
        """As JSON; ``kind`` tells it from the recipe of a diffusion model."""
        return json.dumps({"kind": AUTOENCODER_KIND, **dataclasses.asdict(self)}, indent=2) + "\n"


@dataclass(frozen=True)
class Recipe:
    """The configurations of a run."""

    name: str = "custom"
    """Name of the run folder, runs/NAME."""
    seed: int = 0
    """Seed of weights, data order, noise and sample pictures."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The latents."""
    autoencoder_train: TrainConfig = field(default_factory=lambda: AUTOENCODER_TRAIN)
    """Training of the autoencoder (kl)."""
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """Captions."""
    latents: str = ""
    """Folder of the encoded cache, or its URL (s3://...) with RUN-latents as the local copy; empty: RUN-latents."""
    init: str = ""
    """Fine-tune this model: a run folder, a shipped model, a folder of `ditlab import` or diffusers, or a hub id. The recipe
    gets its network, process and autoencoder; training starts from its weights."""
    model: NetworkConfig = field(default_factory=DiTConfig)
    """The network."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training of the network."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Sampling defaults, also used for the sample pictures."""
    sample_images: int = 100
    """Images of a sample picture."""

    def autoencoder_recipe(self) -> AutoencoderRecipe:
        """The training of this recipe's autoencoder, the same wherever the autoencoder is stored."""
        autoencoder = dataclasses.replace(self.autoencoder, path="")
        return AutoencoderRecipe(self.name, self.seed, self.data, autoencoder, self.autoencoder_train)

    def check(self) -> None:
        """Raise UserError for a value that is wrong for any images."""
        _check_seed(self.seed)
        if self.sample_images < 1:
            raise UserError(f"--sample-images {self.sample_images} must be 1 or more")
        self.train.check()
        self.diffusion.check()
        if files.is_url(self.latents):
            RemoteCache(self.latents)  # raises for a URL that cannot be opened
        if autoencoder_kind(self.autoencoder.kind).trained:
            self.autoencoder_recipe().check("autoencoder-train")

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({**dataclasses.asdict(self), "model": to_record(self.model)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "recipe") -> Recipe:
        """Back from JSON; raises UserError, which names ``source``, for anything but the recipe of a model."""
        return of_model(parse_recipe(text, source), source)


def network_spec(
    recipe: Recipe, shape: tuple[int, ...], class_count: int, text: TextEncoder | None = None
) -> NetworkSpec:
    """The inputs and outputs of a recipe's network.

    Args:
        recipe: of the network.
        shape: of latents, (C, *size).
        class_count: classes of the labels.
        text: the encoder of captions, which replace labels.
    """
    (channels, *size), diffusion = shape, recipe.diffusion
    latent, null, variance = (
        LatentSpec(channels, tuple(size)),
        diffusion.condition_dropout > 0,
        diffusion.learned_variance,
    )
    if text is None:
        return labelled(latent, class_count, null=null, learned_variance=variance)
    condition = TextConfig(
        features=text.features, vocabulary=text.vocabulary, frozen=recipe.text.frozen, tokens=text.max_tokens, null=null
    )  # fmt: skip
    return NetworkSpec(latent, (condition,), variance)


def of_model(recipe: Recipe | AutoencoderRecipe, source: str) -> Recipe:
    """The recipe itself; raises UserError for that of an autoencoder. ``source`` names it in errors."""
    if isinstance(recipe, AutoencoderRecipe):
        raise UserError(f"{source} is the recipe of an autoencoder; only `ditlab autoencoder` accepts it")
    return recipe


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} is out of range; seeds are 0 or more")


def parse_recipe(text: str, source: str = "recipe") -> Recipe | AutoencoderRecipe:
    """A recipe of either kind from JSON; raises UserError, which names ``source``, for wrong fields, types or syntax."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source} is not JSON ({error})") from error
    if isinstance(value, dict) and value.get("kind") == AUTOENCODER_KIND:
        return _build(AutoencoderRecipe, {name: item for name, item in value.items() if name != "kind"}, source)
    return _build(Recipe, value, source)


def _build(kind: type, value: object, where: str) -> typing.Any:
    """A dataclass from nested dictionaries."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, not {value!r}")
    types = typing.get_type_hints(kind)
    names = {item.name for item in dataclasses.fields(kind)}
    renamed = RENAMED.get(kind, {})
    value = {renamed.get(str(name), str(name)): item for name, item in value.items()}
    for name in value:
        if name not in names:
            raise UserError(f"{where} has an unknown field {name!r}; {nearest(name, sorted(names))}")
    return kind(**{name: _value(types[name], item, f"{where}: {name}") for name, item in value.items()})


def _value(hint: typing.Any, item: typing.Any, where: str) -> typing.Any:
    """A field's value as JSON has it, checked against the field's type."""
    if hint == NetworkConfig:  # either network; the record says which
        hint, item = of_record(item, where) if isinstance(item, dict) else (DiTConfig, item)
    if dataclasses.is_dataclass(hint):
        return _build(hint, item, where)  # type: ignore[arg-type]
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if item not in choices:
            raise UserError(f"{where} is {item!r}; {nearest(str(item), choices)}")
        return item
    if origin is tuple:
        if not isinstance(item, list):
            raise UserError(f"{where} is {item!r}, must be a list of {choices[0].__name__}")
        return tuple(_value(choices[0], part, where) for part in item)
    if hint is float and type(item) is int:
        return float(item)
    if type(item) is not hint:
        raise UserError(f"{where} is {item!r}, must be {hint.__name__}")
    return item


def flatten(recipe: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every field of a recipe by its path: ``("model.depth", 12)``."""
    for item in dataclasses.fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def read_recipe(path: Path) -> Recipe | AutoencoderRecipe:
    """The recipe of a recipe.json, of either kind; raises UserError if it cannot be read or holds no recipe."""
    try:
        return parse_recipe(path.read_text(), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); it should be a recipe.json") from error


def refuse_other(recipe: Recipe | AutoencoderRecipe, folder: Path) -> None:
    """Check that a run folder is empty, or holds a run of this recipe to resume.

    The length of a run, its output, how it is computed and where its images are may change; every other field must be the
    same. That the images are the same is checked when they have been listed, see ``refuse_other_data``.

    Raises:
        UserError: the folder holds a run with other settings (the first differences are named), one that went further, or
            a model that was not trained there.
    """
    path = folder / "recipe.json"
    foreign = ("model.json",) if isinstance(recipe, AutoencoderRecipe) else ("autoencoder.json",)
    if any((folder / name).exists() for name in (foreign if path.exists() else ("model.json", "autoencoder.json"))):
        raise UserError(f"{folder} holds a model that was not trained there; choose another --out")
    trained = max((int(done.name) for done in existing(folder / "checkpoints")), default=0)
    if trained > recipe.train.images > 0:
        raise UserError(
            f"{folder} was trained on {trained:,} images, more than {recipe.train.images:,}; choose another --out"
        )
    if path.exists():
        there, here = _fields(read_recipe(path), recipe), _fields(recipe, recipe)
        differences = [
            f"{name} {there[name]} there, {value} here"
            for name, value in here.items()
            if there.get(name, value) != value  # a field that one kind of network lacks is covered by "model"
        ]
        if differences:
            first = "; ".join(differences[:3])
            raise UserError(f"{folder} holds a run of other settings ({first}); choose another --out")


def _fields(recipe: Recipe | AutoencoderRecipe, like: Recipe | AutoencoderRecipe) -> dict[str, object]:
    """The fields that identify a run. Before version 0.2 the folder of an autoencoder held the whole recipe."""
    if isinstance(like, AutoencoderRecipe) and isinstance(recipe, Recipe):
        recipe = recipe.autoencoder_recipe()
    network = {"model": recipe.model.kind} if isinstance(recipe, Recipe) else {}
    free = ("name", "sample_images", "latents", "text.cache", "data.path", *(f"train.{name}" for name in FREE))
    fields = {name: value for name, value in flatten(recipe) if name not in free and not name.startswith("sample.")}
    return {**network, **fields}


def absolute(recipe: R) -> R:
    """The recipe with absolute paths of its images, its autoencoder and its latents, so that a run can be used anywhere."""

    def local(path: str) -> str:
        return path if not path or files.is_url(path) else os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - keeps links

    recipe = replace(recipe, data=replace(recipe.data, path=local(recipe.data.path)))
    config = recipe.autoencoder
    if autoencoder_kind(config.kind).trained or Path(config.path).expanduser().exists():  # others are names on the hub
        recipe = replace(recipe, autoencoder=replace(config, path=local(config.path)))
    if not isinstance(recipe, Recipe):
        return recipe
    text = replace(recipe.text, cache=local(recipe.text.cache))
    if Path(text.path).expanduser().exists():
        text = replace(text, path=local(text.path))
    return replace(recipe, latents=local(recipe.latents), text=text)


def save_recipe(recipe: Recipe | AutoencoderRecipe, folder: Path) -> None:
    """Write ``recipe.json`` into a run folder; raises UserError if it cannot be written."""
    files.write_file(folder / "recipe.json", recipe.to_json())
