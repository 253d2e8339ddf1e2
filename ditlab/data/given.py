"""Images given in Python: arrays, or a map-style data set of PyTorch or Hugging Face."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ditlab.data.arrays import ArraySource
from ditlab.data.captions import caption_columns, captions_of
from ditlab.data.classes import COLUMNS
from ditlab.data.config import DataConfig
from ditlab.data.decode import array_to_channels, image_to_array
from ditlab.data.source import IMAGE_COLUMNS, Captions, Source
from ditlab.errors import UserError, nearest

TITLE = "the given images"
EXPECTED = (
    "images are uint8 or floats from 0 to 1: an array (N, H, W) or (N, H, W, C), a tensor (N, C, H, W), or a list of Pillow "
    "images of one size"
)


def given_source(data: Any, captions: Any = None, config: DataConfig | None = None) -> Source:
    """The source of images given in Python.

    Args:
        data: images as ``to_uint8`` takes them; a tuple (images, labels) with labels (N,), which are class names or whole
            numbers from 0; or a map-style data set (``__len__`` and ``__getitem__``) of images, of (image, label), or of
            dictionaries, as those of Hugging Face.
        captions: of each image a text, a list of several, or None; by default those of the dictionaries.
        config: its ``image``, ``label`` and ``caption`` name keys of the dictionaries, by default the usual ones.

    Raises:
        UserError: anything else, or labels or captions that do not fit.
    """
    source = _images(data, config or DataConfig())
    if captions is not None:
        source.captions = _given_captions(captions, len(source))
    return source


def _images(data: Any, config: DataConfig) -> Source:
    if isinstance(data, tuple):
        if len(data) != 2:
            raise UserError(f"data is a tuple of {len(data)}; give images, (images, labels) or a map-style data set")
        pixels = to_uint8(data[0])
        labels, names = class_labels(data[1], len(pixels))
        return ArraySource(TITLE, pixels, labels, names)
    items = isinstance(data, list) and data and isinstance(data[0], tuple | Mapping)
    if isinstance(data, np.ndarray | torch.Tensor | list) and not items:
        pixels = to_uint8(data)
        return ArraySource(TITLE, pixels, np.zeros(len(pixels), np.int64), ())
    if isinstance(data, Mapping):
        raise UserError(f"data is a dictionary of {', '.join(map(str, data))}; give one of these")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return MapSource(data, config)
    raise UserError(f"data is of type {type(data).__name__}; give images, (images, labels) or a map-style data set")


def _given_captions(captions: Any, count: int) -> Captions:
    if isinstance(captions, str) or not hasattr(captions, "__len__") or not hasattr(captions, "__getitem__"):
        raise UserError(f"captions are of type {type(captions).__name__}; give a list with a text for each image")
    if len(captions) != count:
        raise UserError(f"{len(captions):,} captions for {count:,} images; give one for each, None without one")
    for index in range(count):
        values = captions[index] if isinstance(captions[index], list | tuple) else [captions[index]]
        wrong = [value for value in values if not isinstance(value, str | None)]
        if wrong:
            kind = type(wrong[0]).__name__
            raise UserError(f"caption {index} is of type {kind}; give a text, a list of several, or None")
    return [captions_of(captions[index]) for index in range(count)]


def to_uint8(images: Any) -> np.ndarray:
    """Images as uint8 (N, H, W, C).

    Args:
        images: an array (N, H, W) or (N, H, W, C), a tensor (N, H, W) or (N, C, H, W), each of uint8 or of floats from 0 to 1;
            or a list of Pillow images, or of arrays (H, W) or (H, W, C), of one size.

    Raises:
        UserError: another shape, other values, or no image.
    """
    if isinstance(images, list):
        arrays = [_one_image(image) for image in images]
        shapes = {array.shape for array in arrays}
        if len(shapes) != 1:
            raise UserError(f"the list has images of {len(shapes)} shapes; {EXPECTED}")
        return np.stack(arrays)
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.movedim(1, -1) if images.dim() == 4 else images).numpy()
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or not images.size:
        raise UserError(f"images of {_describe(images)}; {EXPECTED}")
    pixels = images[..., None] if images.ndim == 3 else images
    if pixels.shape[1] in (1, 3, 4) and pixels.shape[3] > 4:
        raise UserError(f"images of {_describe(images)} have their channels first; give images.transpose(0, 2, 3, 1)")
    return _bytes(pixels)


def class_labels(labels: Any, count: int, names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of ``count`` images, int64 (N,), and the names of the classes, by default the labels themselves.

    Raises:
        UserError: another number of labels, labels that are neither text nor whole numbers, or numbers with gaps.
    """
    values = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
    if values.shape != (count,):
        raise UserError(f"labels of shape {values.shape} for {count:,} images; give one label an image, ({count},)")
    if values.dtype.kind in "UO":
        words, indices = np.unique(values.astype(str), return_inverse=True)
        return indices.astype(np.int64), tuple(words.tolist())
    if values.dtype.kind not in "iu":
        raise UserError(f"labels of type {values.dtype}; give class names, or whole numbers from 0")
    found = np.unique(values).tolist()
    if not names and found != list(range(len(found))):
        raise UserError(
            f"labels are {len(found)} numbers from {found[0]} to {found[-1]}; number the classes from 0 without gaps, as "
            "np.unique(labels, return_inverse=True)[1] does"
        )
    if names and not 0 <= found[0] <= found[-1] < len(names):
        raise UserError(f"labels from {found[0]} to {found[-1]} do not fit the data set's {len(names)} classes")
    return values.astype(np.int64), tuple(names) or tuple(map(str, found))


class MapSource(Source):
    """A map-style data set whose items are images, (image, label), or dictionaries.

    Every item is read once for its label, captions and the fingerprint, then again when its pixels are used. Class names are
    the data set's ``classes``, as of torchvision, or those of its ``features``, as of Hugging Face. ``config`` names keys of
    dictionaries.

    Raises:
        UserError: items of another kind, or random transforms.
    """

    threaded = False

    def __init__(self, data: Any, config: DataConfig) -> None:
        if not len(data):
            raise UserError("the data set is empty; training needs at least one image")
        self._keys = _Keys.of(data[0], config) if isinstance(data[0], Mapping) else None
        self.title, self.stamps, self._data, self._lock = TITLE, {}, data, threading.Lock()
        digest, labels, captions = hashlib.sha256(), [], []
        first, *_ = self._item(0)
        if not np.array_equal(first, self._item(0)[0]):
            raise UserError(
                "item 0 differs when it is read again: remove random transforms, since each image is read once for all "
                "epochs; recipe(..., flip=True) mirrors at random"
            )
        for index in range(len(data)):
            pixels, label, text = self._item(index)
            digest.update(f"{pixels.shape} {label}".encode() + pixels.tobytes())
            labels.append(label)
            captions.append(captions_of(text))
        self.captions = captions if any(captions) else None
        self._digest = digest.digest()
        if any(label is None for label in labels):
            self.labels, self.names = np.zeros(len(labels), np.int64), ()
        else:
            features = getattr(data, "features", None) or {}
            stored = getattr(features.get(self._keys.label), "names", ()) if self._keys else ()
            classes = stored or getattr(data, "classes", ())
            known = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
            self.labels, self.names = class_labels(labels, len(labels), classes if known else ())

    def name(self, index: int) -> str:
        """The item's index."""
        return f"item {index} of the data set"

    def decode(self, index: int, channels: int) -> np.ndarray:
        """See Source.decode."""
        return array_to_channels(self._item(index)[0], channels)

    def identity(self) -> Iterator[bytes]:
        """A digest of every image and label."""
        yield self._digest

    def _item(self, index: int) -> tuple[np.ndarray, Any, Any]:
        """Image uint8 (H, W, C), label and captions, None if the items have none."""
        with self._lock:
            item = self._data[index]
        if self._keys is not None and isinstance(item, Mapping):
            keys = self._keys
            if item.get(keys.image) is None:
                raise UserError(f"item {index} of the data set has no image in {keys.image!r}; remove it")
            return _one_image(item[keys.image]), _number(item.get(keys.label)), item.get(keys.caption)
        if not isinstance(item, tuple | list):
            return _one_image(item), None, None
        if len(item) != 2:
            raise UserError(f"item {index} of the data set has {len(item)} parts; give images, or (image, label)")
        return _one_image(item[0]), _number(item[1]), None


@dataclass(frozen=True)
class _Keys:
    """Keys of items that are dictionaries; empty for what they do not have."""

    image: str
    label: str
    caption: str

    @classmethod
    def of(cls, item: Mapping[str, Any], config: DataConfig) -> _Keys:
        wanted = {"image": config.image, "label": config.label, "caption": config.caption}
        for field, key in wanted.items():
            if key and key not in item and key != "none":
                raise UserError(f"items of the data set have no {key!r} for data.{field}; {nearest(key, item)}")
        image = config.image or next((key for key in IMAGE_COLUMNS if key in item), "")
        if not image:
            raise UserError(f"items of the data set have no image among {', '.join(map(str, item))}; name it image")
        label = config.label or next((key for key in COLUMNS if key in item), "")
        captions = caption_columns([str(key) for key in item], config.caption, config.label)
        return cls(image, label, next(iter(captions), ""))


def _number(label: Any) -> Any:
    return label.item() if isinstance(label, torch.Tensor) else label


def _one_image(image: Any) -> np.ndarray:
    """A Pillow image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), as uint8 (H, W, C)."""
    if isinstance(image, Image.Image):
        return image_to_array(image, 0)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.movedim(0, -1) if image.dim() == 3 else image).numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or not image.size:
        raise UserError(f"an image of {_describe(image)}; give Pillow images, arrays (H, W, C) or tensors (C, H, W)")
    return _bytes(image[..., None] if image.ndim == 2 else image)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8: floats from 0 to 1 are scaled to 255."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    lowest, highest = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return np.round(pixels * 255).astype(np.uint8)
    raise UserError(
        f"images of type {pixels.dtype} with values from {lowest:g} to {highest:g}; give uint8, or floats from 0 to 1"
    )


def _describe(images: Any) -> str:
    return f"shape {images.shape}" if isinstance(images, np.ndarray) else f"type {type(images).__name__}"
