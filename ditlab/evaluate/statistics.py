"""Mean and covariance of features, streamed in float64, merged over processes, and kept in the field's .npz files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditlab.errors import UserError
from ditlab.evaluate.sample_archive import reading
from ditlab.runtime import files

BLOCK = 1024  # rows a product: the D x D sum is then read and written once a thousand images
SAID = ("count", "distance", "size", "images")  # fields of a reference that only ditlab's own files hold


class Statistics:
    """Adds up features (N, D) and gives their mean and covariance.

    Rows are gathered into blocks, each centred on its own mean before its products are taken, and joined to the rest by
    the update of Chan, Golub and LeVeque (1983). So a mean that is large beside the spread costs no digits, and the result
    does not depend on the sizes of the batches. An image costs D^2 / 2 multiply-accumulates.

    Args:
        width: D.
    """

    def __init__(self, width: int):
        self.width = width
        self._count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))  # sum of the products of centred rows
        self._block = np.empty((BLOCK, width))
        self._waiting = 0  # rows in the block

    def update(self, features: np.ndarray) -> None:
        """Add features (N, D) of any number type.

        Raises:
            ValueError: another width.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features of shape {features.shape} where (N, {self.width}) is meant")
        start = 0
        while start < len(features):
            rows = features[start : start + BLOCK - self._waiting]
            self._block[self._waiting : self._waiting + len(rows)] = rows
            self._waiting += len(rows)
            start += len(rows)
            if self._waiting == BLOCK:
                self._flush()

    def merge(self, other: Statistics) -> None:
        """Add all that another one has been given, as another process's share of the images.

        Raises:
            ValueError: another width.
        """
        if other.width != self.width:
            raise ValueError(f"statistics of {other.width} features cannot be merged into those of {self.width}")
        other._flush()
        self._join(other._count, other._mean, other._scatter)

    @property
    def count(self) -> int:
        """How many rows were added."""
        return self._count + self._waiting

    @property
    def mean(self) -> np.ndarray:
        """Float64 (D,).

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("statistics of no features")
        self._flush()
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """Float64 (D, D), divided by N - 1.

        Raises:
            ValueError: fewer than two rows were added.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows of features or more, not {self.count}")
        self._flush()
        return self._scatter / (self._count - 1)

    def _flush(self) -> None:
        rows = self._block[: self._waiting]
        self._waiting = 0
        if len(rows):
            mean = rows.mean(axis=0)
            rows -= mean
            self._join(len(rows), mean, rows.T @ rows)  # numpy sees the transpose of itself and does half the product

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self._count + count
        if not count:
            return
        shift = mean - self._mean
        between = shift * (self._count * count / total) ** 0.5
        self._scatter += scatter
        self._scatter += np.outer(between, between)
        self._mean += shift * (count / total)
        self._count = total


@dataclass(frozen=True)
class Reference:
    """A data set as a Frechet distance sees it, and what its features were.

    Attributes:
        mean: of the pooled features, float64 (D,).
        covariance: of them, (D, D).
        spatial_mean: of the spatial features, which sFID is computed from; None where there are none.
        spatial_covariance: likewise.
        count: how many images; 0 where the file does not say.
        distance: what a Frechet distance of these features is called.
        size: height and width of the images; None where the file does not say.
        images: which images, in words.
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    count: int = 0
    distance: str = "FID"
    size: tuple[int, int] | None = None
    images: str = ""

    def check(self, path: Path, distance: str, width: int, size: tuple[int, int]) -> None:
        """Refuse to be compared with features of another kind.

        Args:
            path: of this reference's file, for the message.
            distance: what a Frechet distance of the other features is called.
            width: of the other pooled features.
            size: height and width of the images they are of.

        Raises:
            UserError: another network, other features of it, or another image size.
        """
        if self.distance != distance:
            raise UserError(
                f"{path} holds statistics for {self.distance}, these images are measured by {distance}; "
                "give a reference made with the same feature network"
            )
        if len(self.mean) != width:
            raise UserError(
                f"{path} holds statistics of {len(self.mean)} features, {distance} has {width}; "
                "give a reference made with the same features"
            )
        if self.size not in (None, size):
            theirs, ours = ("x".join(map(str, sides)) for sides in (self.size, size))
            raise UserError(
                f"{path} holds statistics of {theirs} images, these are {ours}; give a reference of {ours} images"
            )


def write_statistics(path: Path, reference: Reference) -> None:
    """Write a reference as an .npz, its arrays named as ADM's suite (mu, sigma, mu_s, sigma_s) and pytorch-fid name theirs.

    What those files cannot say stands as JSON under "ditlab".

    Raises:
        UserError: the disk is full or the place cannot be written; what stood there is unchanged.
    """
    arrays = {"mu": reference.mean, "sigma": reference.covariance}
    if reference.spatial_mean is not None and reference.spatial_covariance is not None:
        arrays |= {"mu_s": reference.spatial_mean, "sigma_s": reference.spatial_covariance}
    said = {name: getattr(reference, name) for name in SAID}
    buffer = io.BytesIO()
    np.savez(buffer, ditlab=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]
    files.write_file(path, buffer.getvalue())


def read_statistics(path: Path) -> Reference:
    """Read what ``write_statistics`` wrote, or a file of ADM's suite or of pytorch-fid.

    Those say nothing of their network: they are taken to be of the reference Inception, with which both are made.

    Raises:
        UserError: not an .npz, cut off, mu or sigma missing, of shapes that do not belong together, or not finite.
    """
    with reading(path), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.startswith("arr_")}  # ADM's hold images too
        said = json.loads(str(arrays.pop("ditlab", "{}")))
    mean, covariance = _mean_and_covariance(path, arrays, "mu", "sigma")
    spatial_mean = spatial_covariance = None
    if {"mu_s", "sigma_s"} & arrays.keys():
        spatial_mean, spatial_covariance = _mean_and_covariance(path, arrays, "mu_s", "sigma_s")
    if said.get("size"):
        said["size"] = tuple(said["size"])
    known = {name: said[name] for name in SAID if name in said}
    return Reference(mean, covariance, spatial_mean, spatial_covariance, **known)


def _mean_and_covariance(
    path: Path, arrays: dict[str, np.ndarray], mu: str, sigma: str
) -> tuple[np.ndarray, np.ndarray]:
    for name in (mu, sigma):
        if name not in arrays:
            there = ", ".join(arrays) or "none"
            raise UserError(
                f"{path} holds no statistics: no {name} among its keys ({there}); expected mu (D,) and sigma (D, D)"
            )
    mean, covariance = arrays[mu], arrays[sigma]
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise UserError(
            f"{path} has {mu} of shape {mean.shape} and {sigma} of shape {covariance.shape}; expected (D,) and (D, D)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} has values in {mu} or {sigma} that are not finite; make the statistics again")
    return mean.astype(np.float64), covariance.astype(np.float64)
