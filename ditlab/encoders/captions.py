"""The captions of a data set, encoded once and read by image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ditlab.encoders.text import EncodedText, TextEncoder
from ditlab.encoders.text_cache import TextCache

ENCODED = 4096  # texts at a time


def different_texts(captions: Iterable[tuple[str, ...]]) -> list[str]:
    """Every caption once, in order."""
    return list(dict.fromkeys(text for each in captions for text in each))


class EncodedCaptions:
    """Every caption of a data set as ids or features; each different caption is encoded once.

    Args:
        captions: of each image, one or several; an empty tuple where an image has none.
        encoder: of the captions.
        fingerprint: equal for equal captions.
        cache: features of all captions on disk, which are read from there; None: encoded now and kept in memory.
    """

    def __init__(
        self, captions: Sequence[tuple[str, ...]], encoder: TextEncoder, fingerprint: str = "",
        cache: TextCache | None = None,
    ):  # fmt: skip
        self.fingerprint = fingerprint
        texts = _InMemory(different_texts(captions), encoder) if cache is None else cache
        counts = np.array([len(each) for each in captions], np.int64)
        self._starts, self._counts, self._texts = np.cumsum(counts) - counts, counts, texts
        self._rows = np.array([texts.rows[text] for each in captions for text in each], np.int64)

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
        lengths = torch.from_numpy(np.where(count > 0, self._texts.lengths[rows], 0))
        values = torch.from_numpy(self._texts.read(rows))
        return EncodedText(values, torch.arange(values.shape[1]) < lengths[:, None])


class _InMemory:
    """Encoded texts, as ``TextCache`` has them: ids int64 (U, S), or features (U, S, E), all padded to the longest."""

    def __init__(self, texts: Sequence[str], encoder: TextEncoder):
        self.rows = {text: row for row, text in enumerate(texts)}
        parts = [encoder.encode(texts[start : start + ENCODED]) for start in range(0, len(texts), ENCODED)]
        parts = parts or [encoder.encode([""])]
        width, count = max(part.mask.shape[1] for part in parts), sum(len(part.mask) for part in parts)
        first = parts[0].value.numpy()
        self._values = np.zeros((count, width, *first.shape[2:]), first.dtype)
        start = 0
        for part in parts:
            self._values[start : start + len(part.mask), : part.mask.shape[1]] = part.value.numpy()
            start += len(part.mask)
        self.lengths = torch.cat([part.mask.sum(dim=1) for part in parts]).numpy()

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._values[rows]
