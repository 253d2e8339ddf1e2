"""The size of the studies on each data set: half an hour on two cores for digits, hours on one GPU for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes import Recipe
from ditlab.study.study_run import StudyRun

Sizes = dict[str, tuple[int, int, int]]  # depth, width, heads


@dataclass(frozen=True)
class StudyPreset:
    """The defaults that all studies on one data set share."""

    recipe: Recipe  # the base recipe of every run; it holds the number of training images and the default sampling
    sizes: Sizes  # depth, width and heads of each network size, smallest first
    patches: tuple[int, ...]  # patch sizes, largest first
    size: str  # the default size, for studies that do not vary it
    patch: int  # the default patch size
    count: int  # number of samples to measure
    seed: int = 0  # of the runs
    rates: Mapping[str, float] = field(default_factory=dict)  # learning rates that a search chose, by arm

    def dit(self, size: str, patch: int) -> DiTConfig:
        """An adaLN-Zero DiT of a size and patch size."""
        depth, width, heads = self.sizes[size]
        return DiTConfig(depth=depth, width=width, heads=heads, patch=patch)

    @property
    def default_dit(self) -> DiTConfig:
        """The network of studies that do not vary size and patch size."""
        return self.dit(self.size, self.patch)

    def run(
        self, name: str, values: dict[str, Any], recipe: Recipe, sample: SampleConfig | None = None, training: str = ""
    ) -> StudyRun:
        """A run of a study; ``training`` is shared by runs that differ only in sampling, and has the run's name by default."""
        training = f"{training or name}-seed{self.seed}"
        recipe = replace(recipe, name=training, seed=self.seed)
        values = {**values, "seed": self.seed}
        return StudyRun(f"{name}-seed{self.seed}", training, recipe, sample or recipe.sample, self.count, values)


PRESETS: dict[str, tuple[Sizes, tuple[int, ...], str, int, int, float, int]] = {
    # sizes, patch sizes, default size and patch size, training images, learning rate, samples, or prompts of a task
    "digits": ({"S": (2, 32, 2), "M": (4, 64, 4), "L": (6, 96, 6)}, (4, 2, 1), "M", 2, 192_000, 4e-3, 1_797),
    "fashion": ({"S": (4, 96, 3), "M": (6, 192, 6), "L": (12, 384, 6)}, (7, 4, 2), "M", 4, 4_000_000, 1e-3, 10_000),
    "scenes": ({"S": (2, 64, 2), "M": (4, 96, 3), "L": (6, 144, 6)}, (2,), "M", 2, 100_000, 2e-3, 100),
    "cifar10": (
        {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16)}, (8, 4, 2), "S", 4, 12_800_000, 4e-4, 10_000,
    ),
}  # fmt: skip


def preset(recipe: Recipe, images: int = 0, count: int = 0) -> StudyPreset:
    """The preset of a recipe's data set, CIFAR-10's for other data; ``images`` and ``count`` replace its numbers unless 0.

    The recipe gives data, diffusion and optimiser; its network and learning rate are not used, and its autoencoder only
    for images with captions.
    """
    sizes, patches, size, patch, default_images, lr, default_count = PRESETS.get(recipe.data.source, PRESETS["cifar10"])
    images, batch = images or default_images, recipe.train.batch
    log, checkpoint = max(batch, images // 20), max(batch, images // 4)
    train = replace(
        recipe.train, images=images, lr=lr, log=log, checkpoint=checkpoint, samples=images, keep_checkpoints=1
    )
    sample, autoencoder = replace(recipe.sample, sampler="dpm-solver", steps=15), recipe.autoencoder
    if recipe.text.kind == "none":
        sample, autoencoder = replace(sample, sampler="heun", steps=25), replace(autoencoder, kind="pixels")
    base = replace(recipe, train=train, sample=sample, autoencoder=autoencoder)
    return StudyPreset(base, sizes, patches, size, patch, count or default_count)
