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
from ditlab.errors import UserError, nearest
from ditlab.latents import AutoencoderConfig
from ditlab.models import DiTConfig
from ditlab.sample import SampleConfig
from ditlab.train import TrainConfig


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
    autoencoder_train: TrainConfig = field(default_factory=TrainConfig)
    """How the autoencoder is trained (kl)."""
    latents: str = ""
    """Folder of the encoded cache; empty: RUN-latents beside the run."""
    model: DiTConfig = field(default_factory=DiTConfig)
    """The network."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the network is trained."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How samples are made, while training and by default after."""
    sample_images: int = 100
    """Images on a sample picture."""

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "recipe") -> Recipe:
        """Back from JSON; ``source`` names it in errors.

        Raises:
            UserError: no JSON, or fields a recipe does not have.
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
    for name in value:
        if name not in names:
            raise UserError(f"{where} has an unknown field {name!r}; {nearest(str(name), sorted(names))}")
    arguments = {}
    for name, item in value.items():
        if dataclasses.is_dataclass(types[name]):
            item = _build(types[name], item, f"{where}: {name}")  # type: ignore[arg-type]
        arguments[name] = tuple(item) if isinstance(item, list) else item
    return kind(**arguments)


def flatten(recipe: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every field of a recipe by its flag: ``("model.depth", 12)``."""
    for item in dataclasses.fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def save_recipe(recipe: Recipe, folder: Path) -> None:
    """Write ``recipe.json`` into a run folder, or go on with one that holds the same.

    How long a run lasts and how often it is looked at may change; everything else decides what it is.

    Raises:
        UserError: the folder holds a run of other settings; the first differences are named.
    """
    from ditlab import atomic

    path = folder / "recipe.json"
    if path.exists():
        stood = dict(flatten(Recipe.from_json(path.read_text(), str(path))))
        free = ("name", "train.images", "train.log", "train.samples", "train.checkpoint", "train.keep", "sample_images")
        differences = [
            f"{name} {stood[name]} there, {value} here"
            for name, value in flatten(recipe)
            if stood[name] != value and name not in free and not name.startswith("sample.")
        ]
        if differences:
            raise UserError(
                f"{folder} holds a run of other settings ({'; '.join(differences[:3])}); choose another --out"
            )
    atomic.write_file(path, recipe.to_json())
