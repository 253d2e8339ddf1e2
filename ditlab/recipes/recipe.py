"""A recipe: everything a run is made from, as one value that goes to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import AutoencoderConfig, Remote, is_url
from ditlab.errors import UserError, nearest
from ditlab.models import DiTConfig, NetworkConfig
from ditlab.models.network import kind, of_record, to_record
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

# Of training, what may change between the starts of one run: how long, how often looked at, and how it is computed.
FREE = (
    "images",
    "log",
    "samples",
    "checkpoint",
    "keep_checkpoints",
    "compile",
    "parallel",
    "microbatch",
    "activation_checkpointing",
    "timeout",
)

# Fields of a recipe.json written before version 0.2, by today's names.
RENAMED = {
    "rate": "lr",
    "clip": "max_grad_norm",
    "keep": "keep_checkpoints",
    "part": "microbatch",
    "recompute": "activation_checkpointing",
}


@dataclass(frozen=True)
class Recipe:
    """The configurations of a run."""

    name: str = "custom"
    """Names the run folder, runs/NAME."""
    seed: int = 0
    """Decides weights, order, draws and sample pictures."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The latents."""
    autoencoder_train: TrainConfig = field(default_factory=lambda: AUTOENCODER_TRAIN)
    """How the autoencoder is trained (kl)."""
    latents: str = ""
    """Folder of the encoded cache, or its URL (s3://...) with RUN-latents as the local copy; empty: RUN-latents."""
    model: NetworkConfig = field(default_factory=DiTConfig)
    """The network."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the network is trained."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How samples are made, while training and by default after."""
    sample_images: int = 100
    """Images on a sample picture."""

    def check(self) -> None:
        """Raise UserError where a value makes no sense, whatever the images are."""
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed} is out of range; seeds are 0 or more")
        if self.sample_images < 1:
            raise UserError(f"--sample-images {self.sample_images} must be 1 or more")
        self.train.check()
        self.diffusion.check()
        if is_url(self.latents):
            Remote(self.latents)  # raises where nothing could ever be read there
        if self.autoencoder.kind == "kl":
            self.autoencoder_train.check("autoencoder-train")
            if self.autoencoder_train.activation_checkpointing or self.autoencoder_train.parallel == "fsdp":
                flags = "--autoencoder-train.activation-checkpointing and --autoencoder-train.parallel fsdp"
                raise UserError(
                    f"{flags} are for diffusion networks only, as --train.activation-checkpointing; leave them out"
                )

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({**dataclasses.asdict(self), "model": to_record(self.model)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "recipe") -> Recipe:
        """Back from JSON; ``source`` names it in errors.

        Raises:
            UserError: no JSON, fields a recipe does not have, or values of another type.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UserError(f"{source} is not JSON ({error})") from error
        return _build(cls, value, source)


def _build(kind: type, value: object, where: str) -> typing.Any:
    """A dataclass from nested dictionaries."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, not {value!r}")
    types = typing.get_type_hints(kind)
    names = {item.name for item in dataclasses.fields(kind)}
    value = {
        RENAMED.get(str(name), str(name)) if kind is TrainConfig else str(name): item for name, item in value.items()
    }
    for name in value:
        if name not in names:
            raise UserError(f"{where} has an unknown field {name!r}; {nearest(name, sorted(names))}")
    arguments = {}
    for name, item in value.items():
        if types[name] == NetworkConfig:  # either network; the record says which
            types[name], item = of_record(item, f"{where}: {name}") if isinstance(item, dict) else (DiTConfig, item)
        if dataclasses.is_dataclass(types[name]):
            arguments[name] = _build(types[name], item, f"{where}: {name}")  # type: ignore[arg-type]
        else:
            arguments[name] = _value(types[name], item, f"{where}: {name}")
    return kind(**arguments)


def _value(hint: typing.Any, item: typing.Any, where: str) -> typing.Any:
    """A field's value as JSON has it, checked against the field's type."""
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
    """Every field of a recipe by its flag: ``("model.depth", 12)``."""
    for item in dataclasses.fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def read_recipe(path: Path) -> Recipe:
    """The recipe of a recipe.json.

    Raises:
        UserError: it cannot be read, or holds no recipe.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); it should be a recipe.json") from error
    return Recipe.from_json(text, str(path))


def refuse_other(recipe: Recipe, folder: Path, parts: tuple[str, ...] = ("",)) -> None:
    """Look whether a run folder is free, or holds a run of this recipe to go on with.

    How long a run lasts and how often it is looked at may change; everything else decides what it is.

    Args:
        recipe: of the run to be.
        folder: its folder.
        parts: beginnings of the fields that count for this folder; all by default.

    Raises:
        UserError: the folder holds a run of other settings (the first differences are named), one that went further, or
            a model that no recipe made.
    """
    path = folder / "recipe.json"
    if not path.exists() and any((folder / name).exists() for name in ("model.json", "autoencoder.json")):
        raise UserError(f"{folder} holds a model that was not trained there; choose another --out")
    trained = max((int(done.name) for done in existing(folder / "checkpoints")), default=0)
    if trained > recipe.train.images:
        raise UserError(
            f"{folder} was trained on {trained:,} images, more than {recipe.train.images:,}; choose another --out"
        )
    if path.exists():
        other = read_recipe(path)
        stood = {"model": kind(other.model), **dict(flatten(other))}
        free = ("name", "sample_images", "latents", *(f"train.{field}" for field in FREE))
        differences = [
            f"{name} {stood[name]} there, {value} here"
            for name, value in (("model", kind(recipe.model)), *flatten(recipe))
            if stood.get(name, value) != value  # what only the other kind of network has is told by its kind
            and name.startswith(parts)
            and name not in free
            and not name.startswith("sample.")
        ]
        if differences:
            raise UserError(
                f"{folder} holds a run of other settings ({'; '.join(differences[:3])}); choose another --out"
            )


def save_recipe(recipe: Recipe, folder: Path) -> None:
    """Write ``recipe.json`` into a run folder.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    files.write_file(folder / "recipe.json", recipe.to_json())
