"""The captions of a data set, encoded once and read by image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ditlab.encoders.text import EncodedText, TextEncoder

ENCODED = 4096  # texts at a time


class EncodedCaptions:
    """Every caption of a data set as ids or features; each different caption is encoded once.

    Args:
        captions: of each image, one or several; an empty tuple where an image has none.
        encoder: of the captions.
        fingerprint: equal for equal captions.
    """

    def __init__(self, captions: Sequence[tuple[str, ...]], encoder: TextEncoder, fingerprint: str = ""):
        self.fingerprint = fingerprint
        different = {text: row for row, text in enumerate(dict.fromkeys(text for each in captions for text in each))}
        counts = np.array([len(each) for each in captions], np.int64)
        self._starts, self._counts = np.cumsum(counts) - counts, counts
        self._rows = np.array([different[text] for each in captions for text in each], np.int64)
        encoded = [
            encoder.encode(list(different)[start : start + ENCODED]) for start in range(0, len(different), ENCODED)
        ]
        self._values, self._lengths = _joined(encoded or [encoder.encode([""])])

    def __len__(self) -> int:
        return len(self._counts)

    def read(self, indices: np.ndarray, draws: Tensor) -> EncodedText:
        """A caption of each of the images ``indices`` (N,), chosen by uniform draws (N,) in [0, 1).

        An image without captions has a text without tokens. All texts are padded to the longest of the data set.
        """
        count = self._counts[indices]
        if not len(self._rows):
            rows = np.zeros(len(indices), np.int64)
        else:
            chosen = self._starts[indices] + np.minimum((draws.numpy() * count).astype(np.int64), count - 1)
            rows = self._rows[np.where(count > 0, chosen, 0)]
        lengths = torch.from_numpy(np.where(count > 0, self._lengths[rows], 0))
        mask = torch.arange(self._values.shape[1]) < lengths[:, None]
        return EncodedText(torch.from_numpy(self._values[rows]), mask)


def _joined(parts: Sequence[EncodedText]) -> tuple[np.ndarray, np.ndarray]:
    """Values (U, S) or (U, S, E) of all parts, padded to the longest, and the tokens of each, int64 (U,)."""
    width, count = max(part.mask.shape[1] for part in parts), sum(len(part.mask) for part in parts)
    first = parts[0].value.numpy()
    values = np.zeros((count, width, *first.shape[2:]), first.dtype)
    start = 0
    for part in parts:
        values[start : start + len(part.mask), : part.mask.shape[1]] = part.value.numpy()
        start += len(part.mask)
    return values, torch.cat([part.mask.sum(dim=1) for part in parts]).numpy()
