"""The field's numbers of one set of made images, with how far each can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ditlab.evaluate.features import Features
from ditlab.evaluate.metrics import enough, frechet_distance, frechet_spread, inception_score, kernel_distance
from ditlab.evaluate.neighbours import precision_recall
from ditlab.evaluate.real import Real, evenly
from ditlab.evaluate.statistics import Reference, Statistics

NEIGHBOURS = 10_000  # images of each side in precision, recall and the kernel distance, as ADM's suite takes
Moments = tuple[np.ndarray, np.ndarray]  # mean (D,) and covariance (D, D)


@dataclass(frozen=True)
class Number:
    """A measured value.

    Attributes:
        value: itself.
        spread: a standard deviation, None where none was measured: of a Frechet distance, precision and recall over other
            samples as many as these; of a kernel distance and a score, as published, over the parts they are means of.
    """

    value: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.spread is None else f" ± {self.spread:.2g}")


def names(distance: str) -> dict[str, str]:
    """What the numbers of one network's features are called: only the reference Inception's are FID, sFID and KID."""
    if distance == "FID":
        return {"frechet": "FID", "spatial": "sFID", "kernel": "KID", "score": "Inception score"}
    other = distance.removeprefix("FD-")
    return {"frechet": distance, "spatial": f"sFD-{other}", "kernel": f"KD-{other}", "score": f"score-{other}"}


def measure(made: Features, whole: Reference, real: Real | None = None) -> dict[str, Number]:
    """Compare made images with real ones.

    Args:
        made: features of the made images.
        whole: statistics of the real ones.
        real: their kept features, where they are at hand; without them there is no kernel distance, precision or recall.

    Returns:
        By name. A Frechet distance is left out where the real images are too few for it.

    Raises:
        UserError: too few made images.
    """
    called, width = names(whole.distance), made.pooled.shape[1]
    numbers: dict[str, Number] = {}
    if enough_real(whole):
        enough(len(made), width)
        distance = frechet_distance(*_moments(made.pooled), whole.mean, whole.covariance)
        numbers[called["frechet"]] = Number(distance, frechet_spread(made.pooled, whole.mean, whole.covariance))
        if made.spatial is not None and (places := _places(whole)) is not None:
            numbers[called["spatial"]] = Number(frechet_distance(*_moments(made.spatial), *places))
    if made.probabilities is not None:
        score, spread = inception_score(made.probabilities)
        numbers[called["score"]] = Number(score, spread or None)  # one part has no spread
    if real is not None:
        few = made.pooled[evenly(len(made), NEIGHBOURS)]
        numbers |= _pairs(real.sample(NEIGHBOURS), few, called["kernel"])
    return numbers


def floor(real: Real) -> dict[str, Number]:
    """What real images get: those of even index measured by those of odd index.

    A distance falls with the number of images it is computed from, so that of the halves is a floor for samples as many as
    they are, and somewhat above it for more.
    """
    called, (even, odd) = names(real.whole.distance), real.halves
    numbers: dict[str, Number] = {}
    if enough_real(real.whole):
        numbers[called["frechet"]] = Number(frechet_distance(even.mean, even.covariance, odd.mean, odd.covariance))
        if (ours := _places(even)) is not None and (theirs := _places(odd)) is not None:
            numbers[called["spatial"]] = Number(frechet_distance(*ours, *theirs))
    return numbers | _pairs(real.sample(NEIGHBOURS, 0), real.sample(NEIGHBOURS, 1), called["kernel"])


def enough_real(whole: Reference) -> bool:
    """Whether real images are enough for a covariance of their features; a file that does not say how many is believed."""
    return whole.count == 0 or whole.count > len(whole.mean)


def _moments(features: np.ndarray) -> Moments:
    statistics = Statistics(features.shape[1])
    statistics.update(features)
    return statistics.mean, statistics.covariance


def _places(reference: Reference) -> Moments | None:
    """The moments of its spatial features, where it has them."""
    if reference.spatial_mean is None or reference.spatial_covariance is None:
        return None
    return reference.spatial_mean, reference.spatial_covariance


def _pairs(real: np.ndarray, made: np.ndarray, kernel: str) -> dict[str, Number]:
    precision, recall = precision_recall(real, made)
    numbers = {kernel: Number(*kernel_distance(real, made))}
    for name, share, count in (("precision", precision, len(made)), ("recall", recall, len(real))):
        numbers[name] = Number(share, (share * (1 - share) / count) ** 0.5)
    return numbers
