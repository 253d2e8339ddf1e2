"""Mean and covariance of features: streamed in float64, merged over processes, and stored as .npz files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditlab.errors import UserError
from ditlab.evaluate.sample_archive import npz_errors
from ditlab.runtime import files

BLOCK = 1024  # rows per product: the D x D sum is read and written once per block
METADATA = ("count", "distance", "size", "images")  # fields of a reference that only ditlab's files contain


class Statistics:
    """Accumulates features (N, D) into their mean and covariance.

    Rows are collected into blocks. Each block is centred on its own mean before its products are computed, and merged by the
    update of Chan, Golub and LeVeque (1983), so that a mean that is large compared with the standard deviation costs no
    digits, and the result does not depend on the batch size. An image costs D^2 / 2 multiply-accumulates.
    """

    def __init__(self, width: int):
        self.width = width
        self._count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))  # sum of products of centred rows
        self._block = np.empty((BLOCK, width))
        self._filled = 0  # rows in the block

    def update(self, features: np.ndarray) -> None:
        """Add features (N, D) of any number type. ValueError: another width."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features have shape {features.shape}; expected (N, {self.width})")
        start = 0
        while start < len(features):
            rows = features[start : start + BLOCK - self._filled]
            self._block[self._filled : self._filled + len(rows)] = rows
            self._filled += len(rows)
            start += len(rows)
            if self._filled == BLOCK:
                self._flush()

    def merge(self, other: Statistics) -> None:
        """Add the rows of another accumulator, such as another process's. ValueError: another width."""
        if other.width != self.width:
            raise ValueError(f"cannot merge statistics of {other.width} features into those of {self.width}")
        other._flush()
        self._join(other._count, other._mean, other._scatter)

    @property
    def count(self) -> int:
        """Number of rows added."""
        return self._count + self._filled

    @property
    def mean(self) -> np.ndarray:
        """Float64 (D,). ValueError: no rows were added."""
        if not self.count:
            raise ValueError("no features were added")
        self._flush()
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """Float64 (D, D), divided by N - 1. ValueError: fewer than two rows were added."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two rows of features, not {self.count}")
        self._flush()
        return self._scatter / (self._count - 1)

    def _flush(self) -> None:
        rows = self._block[: self._filled]
        self._filled = 0
        if len(rows):
            mean = rows.mean(axis=0)
            rows -= mean
            self._join(len(rows), mean, rows.T @ rows)  # numpy computes half of a product with its own transpose

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not count:
            return
        total, shift = self._count + count, mean - self._mean
        between = shift * (self._count * count / total) ** 0.5
        self._scatter += scatter
        self._scatter += np.outer(between, between)
        self._mean += shift * (count / total)
        self._count = total


@dataclass(frozen=True)
class Reference:
    """Statistics of a data set's features for Frechet distances."""

    mean: np.ndarray  # of the pooled features, float64 (D,)
    covariance: np.ndarray  # of them, (D, D)
    spatial_mean: np.ndarray | None = None  # of the spatial features, for sFID; None without them
    spatial_covariance: np.ndarray | None = None
    count: int = 0  # number of images; 0 if the file does not contain it
    distance: str = "FID"  # name of the Frechet distance of these features
    size: tuple[int, int] | None = None  # height and width of the images; None if the file does not contain it
    images: str = ""  # description of the images

    def check(self, path: Path, distance: str, width: int, size: tuple[int, int]) -> None:
        """Check that ``width`` features of images of a size, with this name of their distance, can be compared with it.

        ``path`` is this reference's file, for the message. UserError: another network, number of features or image size.
        """
        if self.distance != distance:
            raise UserError(
                f"{path} contains statistics for {self.distance}, but these images are measured by {distance}; "
                "use a reference made with the same feature network"
            )
        if len(self.mean) != width:
            raise UserError(
                f"{path} contains statistics of {len(self.mean)} features, but {distance} has {width}; "
                "use a reference made with the same features"
            )
        if self.size not in (None, size):
            expected, found = ("x".join(map(str, sides)) for sides in (self.size, size))
            raise UserError(
                f"{path} contains statistics of {expected} images, but these are {found}; use a reference of {found} images"
            )


def write_statistics(path: Path, reference: Reference) -> None:
    """Write a reference as an .npz with the array names of ADM's suite (mu, sigma, mu_s, sigma_s) and pytorch-fid.

    Metadata that those files lack is JSON under "ditlab". UserError: the path cannot be written; an earlier file is unchanged.
    """
    arrays = {"mu": reference.mean, "sigma": reference.covariance}
    if reference.spatial_mean is not None and reference.spatial_covariance is not None:
        arrays |= {"mu_s": reference.spatial_mean, "sigma_s": reference.spatial_covariance}
    metadata = {name: getattr(reference, name) for name in METADATA}
    buffer = io.BytesIO()
    np.savez(buffer, ditlab=np.array(json.dumps(metadata)), **arrays)  # type: ignore[arg-type]
    files.write_file(path, buffer.getvalue())


def read_statistics(path: Path) -> Reference:
    """Read a file of ``write_statistics``, of ADM's suite or of pytorch-fid.

    The latter two are assumed to be of the reference Inception, with which both are made.
    UserError: not an .npz, truncated, mu or sigma missing, of shapes that do not match, or not finite.
    """
    with npz_errors(path), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.startswith("arr_")}  # not the images
        metadata = json.loads(str(arrays.pop("ditlab", "{}")))
    moments, spatial = _mean_and_covariance(path, arrays, "mu", "sigma"), (None, None)
    if {"mu_s", "sigma_s"} & arrays.keys():
        spatial = _mean_and_covariance(path, arrays, "mu_s", "sigma_s")
    if metadata.get("size"):
        metadata["size"] = tuple(metadata["size"])
    return Reference(*moments, *spatial, **{name: metadata[name] for name in METADATA if name in metadata})


def _mean_and_covariance(
    path: Path, arrays: dict[str, np.ndarray], mu: str, sigma: str
) -> tuple[np.ndarray, np.ndarray]:
    for name in (mu, sigma):
        if name not in arrays:
            found = ", ".join(arrays) or "none"
            raise UserError(
                f"{path} contains no statistics: no {name} among its keys ({found}); expected mu (D,) and sigma (D, D)"
            )
    mean, covariance = arrays[mu], arrays[sigma]
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise UserError(
            f"{path} has {mu} of shape {mean.shape} and {sigma} of shape {covariance.shape}; expected (D,) and (D, D)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} has values in {mu} or {sigma} that are not finite; compute the statistics again")
    return mean.astype(np.float64), covariance.astype(np.float64)
