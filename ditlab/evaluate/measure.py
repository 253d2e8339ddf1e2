"""The metrics of one set of generated images, each with a standard deviation where one is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ditlab.errors import UserError
from ditlab.evaluate.features import Features
from ditlab.evaluate.metrics import LEAST, frechet_distance, frechet_spread, inception_score, kernel_distance
from ditlab.evaluate.neighbours import precision_recall
from ditlab.evaluate.real import RealImages
from ditlab.evaluate.statistics import Reference, Statistics

REFERENCES = 10_000  # real images, at most, in precision, recall and the kernel distance, as in ADM's reference batches
Moments = tuple[np.ndarray, np.ndarray]  # mean (D,) and covariance (D, D)


@dataclass(frozen=True)
class Number:
    """A measured value and its standard deviation, None if it was not measured.

    Of a Frechet distance, precision and recall it is over other sets of as many samples; of a kernel distance and a score,
    as published, over the parts they are means of.
    """

    value: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.spread is None else f" ± {self.spread:.2g}")


def metric_names(distance: str) -> dict[str, str]:
    """Names of the metrics of one network's features: only the reference Inception's are FID, sFID and KID."""
    if distance == "FID":
        return {"frechet": "FID", "spatial": "sFID", "kernel": "KID", "score": "Inception score"}
    other = distance.removeprefix("FD-")
    return {"frechet": distance, "spatial": f"sFD-{other}", "kernel": f"KD-{other}", "score": f"score-{other}"}


def measure(generated: Features, reference: Reference, real: RealImages | None = None) -> dict[str, Number]:
    """Compare generated images with real ones: metrics by name. UserError: ``check_count`` refuses their number.

    Precision and recall use all generated images and up to 10,000 real ones, as ADM's suite does. Without ``real`` there is
    no kernel distance, precision or recall; where ``no_frechet`` gives a reason, no Frechet distance.
    """
    check_count(len(generated), reference, real)
    called = metric_names(reference.distance)
    numbers: dict[str, Number] = {}
    if not no_frechet(len(generated), reference):
        distance = frechet_distance(*_moments(generated.pooled), reference.mean, reference.covariance)
        spread = frechet_spread(generated.pooled, reference.mean, reference.covariance)
        numbers[called["frechet"]] = Number(distance, spread)
        if generated.spatial is not None and (spatial := _spatial_moments(reference)) is not None:
            numbers[called["spatial"]] = Number(frechet_distance(*_moments(generated.spatial), *spatial))
    if generated.probabilities is not None:
        score, spread = inception_score(generated.probabilities)
        numbers[called["score"]] = Number(score, spread or None)  # one part has no spread
    if real is not None:
        numbers |= _pairwise(real.sample(REFERENCES), generated.pooled, called["kernel"])
    return numbers


def floor(real: RealImages) -> dict[str, Number]:
    """The metrics of real images: those of even index measured against those of odd index.

    A distance falls with the number of images, so this is the floor for as many samples as a half has; for more samples it
    is lower. Without enough images for it no Frechet distance, and none at all of fewer than LEAST images in a half.
    """
    called, (even, odd) = metric_names(real.statistics.distance), real.halves
    numbers: dict[str, Number] = {}
    if not no_frechet(real.statistics.count, real.statistics):
        numbers[called["frechet"]] = Number(frechet_distance(even.mean, even.covariance, odd.mean, odd.covariance))
        if (first := _spatial_moments(even)) is not None and (second := _spatial_moments(odd)) is not None:
            numbers[called["spatial"]] = Number(frechet_distance(*first, *second))
    first, second = real.sample(REFERENCES, 0), real.sample(REFERENCES, 1)
    return numbers | (_pairwise(first, second, called["kernel"]) if min(len(first), len(second)) >= LEAST else {})


def no_frechet(count: int, reference: Reference) -> str:
    """Why ``count`` samples have no Frechet distance to the reference, on one line; empty if they have one.

    The covariance of D features needs D + 1 images; files of statistics without a count are trusted.
    """
    width = len(reference.mean)
    for images, kind in ((count, "samples"), (reference.count or width + 1, "real images")):
        if images <= width:
            return (
                f"{images:,} {kind} are too few for the covariance of {width:,} features; at least {width + 1:,} needed"
            )
    return ""


def check_count(count: int, reference: Reference, real: RealImages | None) -> None:
    """Raise UserError if ``count`` samples are too few for every metric."""
    if real is None and (reason := no_frechet(count, reference)):
        raise UserError(f"{reason}; with real images as the reference, other metrics measure as few as {LEAST}")
    for images, kind in ((count, "samples"), (LEAST if real is None else len(real.indices), "real images")):
        if images < LEAST:
            raise UserError(f"{images} {kind} are too few to be measured; at least {LEAST} needed")


def _moments(features: np.ndarray) -> Moments:
    statistics = Statistics(features.shape[1])
    statistics.update(features)
    return statistics.mean, statistics.covariance


def _spatial_moments(reference: Reference) -> Moments | None:
    """Mean and covariance of the spatial features, if the reference has them."""
    if reference.spatial_mean is None or reference.spatial_covariance is None:
        return None
    return reference.spatial_mean, reference.spatial_covariance


def _pairwise(real: np.ndarray, generated: np.ndarray, kernel: str) -> dict[str, Number]:
    """The metrics that need the features themselves."""
    precision, recall = precision_recall(real, generated)
    numbers = {kernel: Number(*kernel_distance(real, generated))}
    for name, fraction, count in (("precision", precision, len(generated)), ("recall", recall, len(real))):
        numbers[name] = Number(fraction, (fraction * (1 - fraction) / count) ** 0.5)
    return numbers
