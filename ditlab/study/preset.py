"""The size of the studies on each data set: half an hour on two cores for digits, hours on one GPU for the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes import Recipe
from ditlab.study.study_run import StudyRun

Sizes = dict[str, tuple[int, int, int]]  # depth, width, heads


@dataclass(frozen=True)
class StudyPreset:
    """The defaults that all studies on one data set share.

    Attributes:
        recipe: the base recipe of every run; it holds the number of training images.
        sizes: depth, width and heads of each network size, smallest first.
        patches: patch sizes, largest first.
        size: the default size, for studies that do not vary it.
        patch: the default patch size.
        count: number of samples to measure.
        sample: the default sampler, steps and guidance.
    """

    recipe: Recipe
    sizes: Sizes
    patches: tuple[int, ...]
    size: str
    patch: int
    count: int
    sample: SampleConfig

    def dit(self, size: str, patch: int) -> DiTConfig:
        """An adaLN-Zero DiT of a size and patch size."""
        depth, width, heads = self.sizes[size]
        return DiTConfig(depth=depth, width=width, heads=heads, patch=patch)

    @property
    def default_dit(self) -> DiTConfig:
        """The network of studies that do not vary size and patch size."""
        return self.dit(self.size, self.patch)

    def run(
        self,
        name: str,
        values: dict[str, Any],
        recipe: Recipe,
        sample: SampleConfig | None = None,
        training: str = "",
    ) -> StudyRun:
        """A run of a study; ``values["seed"]`` seeds the training, and the training has the run's name by default."""
        recipe = replace(recipe, name=training or name, seed=values["seed"])
        return StudyRun(name, training or name, recipe, sample or self.sample, self.count, values)


PRESETS: dict[str, tuple[Sizes, tuple[int, ...], str, int, int, float, int]] = {
    # sizes, patch sizes, default size and patch size, training images, learning rate, samples
    "digits": (
        {"S": (2, 32, 2), "M": (4, 64, 4), "L": (6, 96, 6)}, (4, 2, 1), "M", 2, 192_000, 4e-3, 1_797,
    ),
    "fashion": (
        {"S": (4, 96, 3), "M": (6, 192, 6), "L": (12, 384, 6)}, (7, 4, 2), "M", 4, 4_000_000, 1e-3, 10_000,
    ),
    "cifar10": (
        {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16)}, (8, 4, 2), "S", 4, 12_800_000, 4e-4, 10_000,
    ),
}  # fmt: skip


def preset(recipe: Recipe, images: int = 0, count: int = 0) -> StudyPreset:
    """The preset of a recipe's data set; CIFAR-10's for other data.

    Args:
        recipe: gives data, diffusion and optimiser; its network, learning rate and autoencoder are not used.
        images: training images of each run; 0 is the preset's number.
        count: samples to measure; 0 is the preset's number.
    """
    sizes, patches, size, patch, default_images, lr, default_count = PRESETS.get(recipe.data.source, PRESETS["cifar10"])
    images = images or default_images
    train = replace(
        recipe.train,
        images=images,
        lr=lr,
        log=max(recipe.train.batch, images // 20),
        checkpoint=max(recipe.train.batch, images // 4),
        samples=images,
        keep_checkpoints=1,
    )
    sample = replace(recipe.sample, sampler="heun", steps=25)
    pixels = replace(recipe, train=train, sample=sample, autoencoder=replace(recipe.autoencoder, kind="pixels"))
    return StudyPreset(pixels, sizes, patches, size, patch, count or default_count, sample)
