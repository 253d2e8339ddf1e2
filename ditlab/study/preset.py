"""How large a study is on each data set: what it can show within half an hour on two cores, or within hours on one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes import Recipe

Sizes = dict[str, tuple[int, int, int]]  # depth, width, heads


@dataclass(frozen=True)
class StudyPreset:
    """One data set's shape of all studies.

    Attributes:
        recipe: what every cell begins with, its training as long as a cell's.
        sizes: of networks, the smallest first, as depth, width and heads.
        patches: from coarse to fine.
        size: the one that studies of anything else use.
        patch: likewise.
        count: images a cell makes.
        sample: how.
    """

    recipe: Recipe
    sizes: Sizes
    patches: tuple[int, ...]
    size: str
    patch: int
    count: int
    sample: SampleConfig

    def dit(self, size: str, patch: int) -> DiTConfig:
        """The paper's block at a size and patch."""
        depth, width, heads = self.sizes[size]
        return DiTConfig(depth=depth, width=width, heads=heads, patch=patch)

    @property
    def usual(self) -> DiTConfig:
        """The network of studies of anything but networks."""
        return self.dit(self.size, self.patch)


SMALL: dict[str, tuple[Sizes, tuple[int, ...], str, int, int, float, int]] = {
    # sizes, patches, the usual size and patch, images a training, its rate, images made
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


def form(recipe: Recipe, images: int = 0, count: int = 0) -> StudyPreset:
    """The form of a recipe's data; of data no form was made for, CIFAR-10's.

    Args:
        recipe: whose images, diffusion and optimiser are used, in pixels; its network, rate and autoencoder are not.
        images: trained on in each cell; 0 is the form's number.
        count: made in each cell; 0 is the form's number.
    """
    sizes, patches, size, patch, usual_images, rate, usual_count = SMALL.get(recipe.data.source, SMALL["cifar10"])
    images = images or usual_images
    train = replace(
        recipe.train,
        images=images,
        lr=rate,
        log=max(recipe.train.batch, images // 20),
        checkpoint=max(recipe.train.batch, images // 4),
        samples=images,
        keep_checkpoints=1,
    )
    sample = replace(recipe.sample, sampler="heun", steps=25)
    pixels = replace(recipe, train=train, sample=sample, autoencoder=replace(recipe.autoencoder, kind="pixels"))
    return StudyPreset(pixels, sizes, patches, size, patch, count or usual_count, sample)
