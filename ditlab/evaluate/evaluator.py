"""One feature network, the real images it has seen, and any number of sets of samples measured against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ditlab.data import Dataset, open_data
from ditlab.errors import UserError
from ditlab.evaluate.features import FeatureNetwork, Features, concatenate, rgb
from ditlab.evaluate.measure import Number, enough_real, floor, measure
from ditlab.evaluate.neighbours import PERCENT, memorisation, nearest
from ditlab.evaluate.real import BATCH, Real, extract, real_features
from ditlab.evaluate.statistics import Reference
from ditlab.pipelines import in_order
from ditlab.runtime.distributed import ALONE, Processes

LOOKED_AT = 1_000  # made images, and held-out ones, whose nearest training images are searched
HELD_OUT = round(1 / PERCENT)  # held-out images that are needed to speak of the closest 1% of them
SHOWN = 32  # made images drawn beside their nearest training images
SIDE = 32  # pixels along a side, at most, where images are compared pixel by pixel


@dataclass(frozen=True)
class ExtractedFeatures:
    """Made images as the network saw them.

    Attributes:
        features: of all of them, in order.
        images: the first ones, uint8 (n, H, W, C), n at most LOOKED_AT.
    """

    features: Features
    images: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to made ones.

    Attributes:
        numbers: how many made images are closer to a training image than held-out images are, by name; none where no images
            were held out.
        expected: what a model has that copies nothing, by the same names, and how far chance takes it from there.
        made: the first SHOWN made images, uint8 (n, H, W, C).
        in_features: the training image nearest to each of these in features, likewise.
        in_pixels: and in pixels.
    """

    numbers: dict[str, Number]
    expected: dict[str, Number]
    made: np.ndarray
    in_features: np.ndarray
    in_pixels: np.ndarray


class Evaluator:
    """Measures samples against real images.

    Args:
        network: sees both.
        whole: statistics of the real images.
        real: these images with their features; None where only statistics are at hand.
        held_out: images of the same kind that were not trained on; None where there are none, or those above are not the
            training images.
    """

    def __init__(
        self, network: FeatureNetwork, whole: Reference, real: Real | None = None, held_out: Real | None = None
    ):
        self.network, self.whole, self.real, self.held_out = network, whole, real, held_out

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        network: FeatureNetwork,
        processes: Processes = ALONE,
        tell: Callable[[int], None] = lambda done: None,
    ) -> Evaluator | None:
        """Show the real images to the network, or take what it saw before; gives nothing in processes but the first.

        Where they are a training split, so are images of the test split shown, if there is one.

        Args:
            dataset: the real images.
            network: on the device it is to run on.
            processes: that share the work.
            tell: told how many real images have been seen, now and then.

        Raises:
            UserError: too few images, or the cache folder cannot be written.
        """
        real = real_features(dataset, network, processes, tell)
        others = _held_out(dataset)
        held_out = None if others is None else real_features(others, network, processes)
        if held_out is not None and len(held_out.indices) < HELD_OUT:  # too many of them could not be read
            held_out = None
        return None if real is None else cls(network, real.whole, real, held_out)

    @property
    def can_measure(self) -> bool:
        """Whether the real images are enough for a Frechet distance."""
        return enough_real(self.whole)

    def measure(self, seen: ExtractedFeatures) -> dict[str, Number]:
        """The numbers of made images.

        Raises:
            UserError: too few of them.
        """
        return measure(seen.features, self.whole, self.real)

    def floor(self) -> dict[str, Number]:
        """What real images get against real images.

        Raises:
            UserError: too few real images.
        """
        return {} if self.real is None else floor(self.real)

    def neighbours(self, seen: ExtractedFeatures) -> Neighbours | None:
        """Look for memorised images, in features and in pixels; gives nothing where the training images are not at hand.

        Raises:
            UserError: a real image can no longer be read.
        """
        if self.real is None or self.real.dataset.config.split != "train":
            return None
        made, train, apart = seen.images, self.real, self.held_out
        alike = made.shape[3] == train.dataset.shape[0]

        def drawn(images: np.ndarray) -> np.ndarray:
            return images if alike else _coloured(images)

        def pixels(real: Real) -> np.ndarray:
            rows = np.arange(len(real.indices))
            parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            return np.concatenate([small_pixels(drawn(real.images(part))) for part in parts])

        spaces = {
            "features": (seen.features.pooled[: len(made)], train.pooled, None if apart is None else apart.pooled),
            "pixels": (small_pixels(drawn(made)), pixels(train), None if apart is None else pixels(apart)),
        }
        numbers, expected, closest = {}, {}, {}
        for space, (queries, base, others) in spaces.items():
            rows, _ = nearest(queries[:SHOWN], base)
            closest[space] = drawn(train.images(rows))
            if others is not None:
                found = memorisation(queries, base, others)
                numbers[f"closer than held out, {space}"] = Number(found.closer)
                numbers[f"copies, {space}"] = Number(found.copies)
                few = 1 / len(queries) + 1 / len(
                    others
                )  # the variance of both shares where made and held out are alike
                expected[f"closer than held out, {space}"] = Number(0.5, (few / 12) ** 0.5)  # Mann and Whitney 1947
                expected[f"copies, {space}"] = Number(PERCENT, (PERCENT * (1 - PERCENT) * few) ** 0.5)
        return Neighbours(numbers, expected, drawn(made[:SHOWN]), closest["features"], closest["pixels"])


def extract_features(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    processes: Processes = ALONE,
    tell: Callable[[int], None] = lambda done: None,
) -> ExtractedFeatures | None:
    """Show made images to a network: each process its share of the batches, as ``generate`` gives them out.

    Args:
        network: on the device it is to run on.
        batches: uint8 (N, H, W, C) each.
        processes: that share the work.
        tell: told about how many images have been seen by all processes, as they are.

    Returns:
        All of them in the first process, nothing in the others.

    Raises:
        UserError: no images.
    """
    shown, done = [], 0
    for batch in batches:
        wanted = done * processes.size < LOOKED_AT  # so that what all processes keep are the first of all images
        shown.append((extract(network, batch), batch if wanted else batch[:0]))
        done += len(batch)
        tell(done * processes.size)
    everyone = processes.gather(shown)
    if not processes.is_main:
        return None
    ordered = in_order(everyone)
    if not ordered:
        raise UserError("there are no images to measure")
    return ExtractedFeatures(
        concatenate([part for part, _ in ordered]), np.concatenate([batch for _, batch in ordered])[:LOOKED_AT]
    )


def small_pixels(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) as rows of pixels uint8 (N, D), each side averaged down to at most SIDE pixels."""
    rows, columns = (-(-size // SIDE) for size in images.shape[1:3])
    height, width = images.shape[1] // rows, images.shape[2] // columns
    blocks = images[:, : height * rows, : width * columns].reshape(len(images), height, rows, width, columns, -1)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8).reshape(len(images), -1)


def _coloured(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) of any number of channels as the network sees them, RGB."""
    return rgb(torch.from_numpy(np.array(images))).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def _held_out(dataset: Dataset) -> Dataset | None:
    """Some images of the test split beside a training split; nothing where there are none, too few, or others."""
    if dataset.config.split != "train":
        return None
    try:
        others = open_data(replace(dataset.config, split="test", limit=LOOKED_AT))
    except UserError:
        return None
    return others if len(others) >= HELD_OUT and others.shape == dataset.shape else None
