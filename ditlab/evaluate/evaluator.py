"""A feature network and real images, against which any number of sets of samples are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ditlab.data import Dataset, open_data
from ditlab.errors import UserError
from ditlab.evaluate.features import FeatureNetwork, Features, concatenate, rgb
from ditlab.evaluate.measure import Number, check_count, floor, measure, no_frechet
from ditlab.evaluate.neighbours import PERCENT, memorisation, nearest_neighbours
from ditlab.evaluate.real import BATCH, RealImages, extract, real_features
from ditlab.evaluate.sample_archive import IMAGES, array_names, open_archive
from ditlab.evaluate.statistics import Reference, read_statistics
from ditlab.pipelines import in_order
from ditlab.runtime.distributed import ALONE, Processes

SEARCHED = 1_000  # generated images, and held-out ones, whose nearest training images are searched
MIN_HELD_OUT = round(1 / PERCENT)  # held-out images, at least, so that the closest 1% of them is one
DRAWN = 32  # generated images drawn with their nearest training images
SIDE = 32  # pixels a side, at most, of images that are compared in pixels

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of all generated images, in order, and the first images: uint8 (n, H, W, C), n at most SEARCHED."""

    features: Features
    images: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to the first DRAWN generated ones, in features and in pixels, uint8 (n, H, W, C) each."""

    numbers: dict[str, Number]  # measures of memorisation by name; empty without held-out images
    expected: dict[str, Number]  # of a model that copies nothing, with their standard deviations by chance
    generated: np.ndarray
    in_features: np.ndarray
    in_pixels: np.ndarray


@dataclass(frozen=True)
class Evaluator:
    """Measures samples against real images."""

    network: FeatureNetwork
    reference: Reference  # statistics of the real images
    real: RealImages | None = None  # the real images with their features; None if only statistics are available
    train: bool = False  # the real images are training images, so that memorisation can be measured
    held_out: RealImages | None = None  # images of the same distribution that were not trained on

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        network: FeatureNetwork,
        processes: Processes = ALONE,
        progress: Progress = lambda done: None,
        trained: bool = True,
    ) -> Evaluator | None:
        """Measure against a data set; if it is a training split, also memorisation, with its test split as held-out images.

        Without ``trained`` no split was trained on. Returns None in all but the main process; for ``progress`` and errors see
        ``real_features``.
        """
        train = trained and dataset.config.split == "train"
        real = real_features(dataset, network, processes, progress)
        test = _test_split(dataset) if train else None
        held_out = None if test is None else real_features(test, network, processes)
        if held_out is not None and len(held_out.indices) < MIN_HELD_OUT:  # too many are unreadable
            held_out = None
        return None if real is None else cls(network, real.statistics, real, train, held_out)

    @classmethod
    def from_file(
        cls,
        path: Path,
        network: FeatureNetwork,
        size: tuple[int, int],
        processes: Processes = ALONE,
        progress: Progress = lambda done: None,
        resize: bool = False,
    ) -> Evaluator | None:
        """Measure against an .npz with statistics (mu, sigma), images (arr_0), or both, as ADM's reference batches have.

        Statistics that the file lacks are computed from its images; without images there is no precision and recall.
        ``size`` is the height and width of the samples; with ``resize``, images without statistics are brought to it. Returns
        None in all but the main process.
        UserError: the file cannot be read, or is of another network or image size.
        """
        names = array_names(path)
        reference = real = None
        if "mu" in names or IMAGES not in names:
            reference = read_statistics(path)
            reference.check(path, network.distance, network.width, size)
        if IMAGES in names:
            dataset = open_archive(path, size if resize and reference is None else ())
            if dataset.shape[1:] != size:
                expected, found = ("x".join(map(str, sides)) for sides in (dataset.shape[1:], size))
                how = f"give --size {expected.replace('x', ' ')} to crop and resize all images to one size"
                raise UserError(f"{path} contains images of {expected}, but the samples are {found}; {how}")
            real = real_features(dataset, network, processes, progress)
        if not processes.is_main:
            return None
        if reference is None:
            assert real is not None
            reference = real.statistics
        return cls(network, reference, real)

    def no_frechet(self, count: int) -> str:
        """Why ``count`` samples have no Frechet distance, on one line; empty if they have. UserError: too few to measure."""
        check_count(count, self.reference, self.real)
        return no_frechet(count, self.reference)

    def measure(self, generated: ExtractedFeatures) -> dict[str, Number]:
        """The metrics of generated images. UserError: too few of them."""
        return measure(generated.features, self.reference, self.real)

    def floor(self) -> dict[str, Number]:
        """The metrics of real images against real images; empty without images, or with too few of them."""
        return {} if self.real is None else floor(self.real)

    def neighbours(self, extracted: ExtractedFeatures) -> Neighbours | None:
        """Search for memorised images, in features and in pixels; None without training images.

        UserError: a real image can no longer be read.
        """
        if self.real is None or not self.train:
            return None
        generated, train, held_out = extracted.images, self.real, self.held_out
        same_channels = generated.shape[3] == train.dataset.shape[0]

        def comparable(images: np.ndarray) -> np.ndarray:
            return images if same_channels else _to_rgb(images)

        def pixels(real: RealImages) -> np.ndarray:
            rows = np.arange(len(real.indices))
            parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            return np.concatenate([small_pixels(comparable(real.images(part))) for part in parts])

        spaces: dict[str, tuple[np.ndarray, Callable[[RealImages], np.ndarray]]] = {
            "features": (extracted.features.pooled[: len(generated)], lambda real: real.pooled),
            "pixels": (small_pixels(comparable(generated)), pixels),
        }
        numbers, expected, nearest = {}, {}, {}
        for space, (queries, rows_of) in spaces.items():
            base = rows_of(train)
            rows, _ = nearest_neighbours(queries[:DRAWN], base)
            nearest[space] = comparable(train.images(rows[:, 0]))
            if held_out is not None:
                others = rows_of(held_out)
                found = memorisation(queries, base, others)
                numbers[f"closer than held out, {space}"] = Number(found.closer)
                numbers[f"copies, {space}"] = Number(found.copies)
                # Standard deviations if both sets are of one distribution: Mann and Whitney 1947, and a binomial's.
                inverse_counts = 1 / len(queries) + 1 / len(others)
                expected[f"closer than held out, {space}"] = Number(0.5, (inverse_counts / 12) ** 0.5)
                expected[f"copies, {space}"] = Number(PERCENT, (PERCENT * (1 - PERCENT) * inverse_counts) ** 0.5)
        return Neighbours(numbers, expected, comparable(generated[:DRAWN]), nearest["features"], nearest["pixels"])


def extract_features(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    processes: Processes = ALONE,
    progress: Progress = lambda done: None,
) -> ExtractedFeatures | None:
    """Compute the features of generated images: each process those of its batches, every size-th as from ``generate``.

    Batches are uint8 (N, H, W, C); ``progress`` is called with about the number of images done by all processes.
    Returns the features of all images in the main process, None in the others. UserError: no images.
    """
    parts, done = [], 0
    for batch in batches:
        stored = done * processes.size < SEARCHED  # of all processes together, the first images
        parts.append((extract(network, batch), batch if stored else batch[:0]))
        done += len(batch)
        progress(done * processes.size)
    gathered = processes.gather(parts)
    if not processes.is_main:
        return None
    ordered = in_order(gathered)
    if not ordered:
        raise UserError("there are no images to measure")
    features, images = zip(*ordered, strict=True)
    return ExtractedFeatures(concatenate(features), np.concatenate(images)[:SEARCHED])


def small_pixels(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) as rows of pixels uint8 (N, D), each side averaged down to at most SIDE pixels."""
    rows, columns = (-(-size // SIDE) for size in images.shape[1:3])
    height, width = images.shape[1] // rows, images.shape[2] // columns
    blocks = images[:, : height * rows, : width * columns].reshape(len(images), height, rows, width, columns, -1)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8).reshape(len(images), -1)


def _to_rgb(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) of 1, 3 or 4 channels as RGB."""
    return rgb(torch.from_numpy(np.array(images))).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def _test_split(dataset: Dataset) -> Dataset | None:
    """Up to SEARCHED images of the test split of a training split; None if it is missing, too small or of another shape."""
    try:
        test = open_data(replace(dataset.config, split="test", limit=SEARCHED))
    except UserError:
        return None
    return test if len(test) >= MIN_HELD_OUT and test.shape == dataset.shape else None
