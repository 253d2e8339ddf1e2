"""Images given in Python: every form of them gives the same bytes, and what does not fit is said."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from ditlab.data import DataConfig
from ditlab.data import Dataset as Data
from ditlab.data.given import class_labels, given_source, to_uint8
from ditlab.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Pictures(Dataset):
    """As torchvision's data sets are: Pillow images, whole numbers, names in ``classes``."""

    classes = ("cat", "dog", "wren")

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[index]), int(LABELS[index])


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS.astype(np.float64) / 255,
        PIXELS.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255,
        [Image.fromarray(image) for image in PIXELS],
        list(PIXELS),
        list(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)),
    ],
)
def test_every_form_of_images_gives_the_same_bytes(images: object):
    np.testing.assert_array_equal(to_uint8(images), PIXELS)


def test_images_without_a_channel_axis_are_grayscale():
    for images in (PIXELS[..., 0], torch.from_numpy(PIXELS[..., 0]), list(PIXELS[..., 0])):
        np.testing.assert_array_equal(to_uint8(images), PIXELS[..., :1])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (PIXELS.astype(np.int64), "int64"),
        (PIXELS.astype(np.float32), "from 0 to 1"),
        (PIXELS / 127.5 - 1, "from -1 to 1; give"),
        (np.where(PIXELS == 3, np.nan, 0.0), "nan"),
        (PIXELS.transpose(0, 3, 1, 2), "transpose(0, 2, 3, 1)"),
        (PIXELS[0, 0], "shape (12, 3)"),
        (PIXELS[:0], "shape (0, 8, 12, 3)"),
        ([], "0 shapes"),
        ([PIXELS[0], PIXELS[1, :4]], "2 shapes"),
        ("photos", "type str"),
        (["a.png"], "type str"),
    ],
)
def test_images_that_do_not_fit_are_answered_with_what_does(images: object, words: str):
    with pytest.raises(UserError) as raised:
        to_uint8(images)
    assert words in str(raised.value)
    assert "give" in str(raised.value) or "images are uint8" in str(raised.value)


def test_labels_are_words_or_whole_numbers_without_gaps():
    indices, names = class_labels(["b", "a", "b"], 3)
    assert (indices.tolist(), names) == ([1, 0, 1], ("a", "b"))
    for labels in ([0, 1, 1], np.array([0, 1, 1], np.uint8), torch.tensor([0, 1, 1])):
        indices, names = class_labels(labels, 3)
        assert (indices.dtype, indices.tolist(), names) == (np.int64, [0, 1, 1], ("0", "1"))
    for labels, words in (
        ([1, 2, 3], "3 numbers from 1 to 3"), ([0, 2, 2], "without gaps"), ([-1, 0, 1], "from -1"),
        ([0.0, 1.0, 1.0], "float64"), ([0, 1], "for 3 images"), ([[0, 1], [1, 0], [0, 0]], "one label an image"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            class_labels(labels, 3)
    with pytest.raises(UserError, match="2 classes"):
        class_labels([0, 1, 2], 3, ("cat", "dog"))


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ((PIXELS, LABELS), ("0", "1", "2")),
        (Pictures(), ("cat", "dog", "wren")),
        (list(zip(PIXELS, LABELS, strict=True)), ("0", "1", "2")),
        (TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.from_numpy(LABELS)), ("0", "1", "2")),
    ],
)
def test_arrays_and_data_sets_read_as_images_with_labels(data: object, names: tuple[str, ...]):
    images = Data(given_source(data), DataConfig(source="given")).load()
    np.testing.assert_array_equal(images.pixels, PIXELS.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images.labels, LABELS)
    assert images.names == names
    sized = Data(given_source(data), DataConfig(source="given", size=(8,), channels=1)).load()
    assert sized.shape == (1, 8, 8)


TEXTS = ["a cat", ["two", " dogs "], None, "", "cafe\u0301\n", []]
CAPTIONS = [("a cat",), ("two", "dogs"), (), (), ("caf\u00e9",), ()]


@pytest.mark.parametrize("data", [PIXELS, (PIXELS, LABELS), Pictures()], ids=["array", "labels", "data set"])
def test_captions_are_given_next_to_the_images(data: object):
    source = given_source(data, TEXTS)
    images = Data(source, DataConfig(source="given")).load()
    assert images.captions == CAPTIONS
    np.testing.assert_array_equal(images.labels, given_source(data).labels)
    assert Data(source, DataConfig(source="given")).fingerprint == Data(given_source(data), DataConfig()).fingerprint
    assert given_source(data).captions is None


def hugging_face(**columns: list) -> datasets.Dataset:
    features = datasets.Features(
        {"picture": datasets.Image(), "species": datasets.ClassLabel(names=["wren", "cat", "dog"])}
    )
    pictures = [Image.fromarray(image) for image in PIXELS]
    data = datasets.Dataset.from_dict({"picture": pictures, "species": LABELS.tolist()}, features)
    for name, values in columns.items():
        data = data.add_column(name, values)  # pyright: ignore[reportCallIssue]
    return data


def test_items_that_are_dictionaries_have_images_classes_and_captions():
    texts = [f"number {index}" for index in range(6)]
    for data, config in (
        (hugging_face(text=texts), DataConfig(label="species")),
        (hugging_face(story=texts), DataConfig(label="species", caption="story")),
    ):
        images = Data(given_source(data, config=config), DataConfig(source="given")).load()
        np.testing.assert_array_equal(images.pixels, PIXELS.transpose(0, 3, 1, 2))
        assert (images.names, images.labels.tolist()) == (("wren", "cat", "dog"), LABELS.tolist())
        assert images.captions == [(text,) for text in texts]
    rows = [{"image": image, "caption": text} for image, text in zip(PIXELS, TEXTS, strict=True)]
    source = given_source(rows)
    assert (source.names, source.captions) == ((), CAPTIONS)
    assert given_source(rows, texts).captions == [(text,) for text in texts]
    assert given_source(rows, config=DataConfig(caption="none")).captions is None


@pytest.mark.parametrize(
    ("data", "captions", "config", "words"),
    [
        (PIXELS, "a cat", {}, ["type str", "a list"]),
        (PIXELS, 7, {}, ["type int", "a list"]),
        (PIXELS, ["a cat"], {}, ["1 captions for 6 images", "None without"]),
        (PIXELS, ["a", "b", "c", "d", "e", 6], {}, ["caption 5 is of type int"]),
        (PIXELS, ["a", "b", "c", "d", ["e", b"f"], None], {}, ["caption 4 is of type bytes"]),
        ({"train": PIXELS, "test": PIXELS}, None, {}, ["dictionary of train, test", "give one"]),
        ([{"pixels": PIXELS[0]}], None, {}, ["no image among pixels"]),
        ([{"image": PIXELS[0], "text": "a"}], None, {"caption": "tex"}, ["no 'tex'", "did you mean 'text'"]),
        ([{"image": PIXELS[0]}, {"text": "a"}], None, {}, ["item 1", "no image"]),
    ],
)
def test_captions_and_dictionaries_that_do_not_fit_are_said(data, captions, config, words):
    with pytest.raises(UserError) as raised:
        given_source(data, captions, DataConfig(**config))
    assert all(word in str(raised.value) for word in words)
    assert "\n" not in str(raised.value)


def test_data_without_labels_has_no_classes():
    for data in (PIXELS, list(PIXELS), _Plain()):
        assert given_source(data).names == ()


class _Plain:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> np.ndarray:
        return PIXELS[index]


class _Random(_Plain):
    def __getitem__(self, index: int) -> np.ndarray:
        return np.random.default_rng().integers(0, 256, (4, 4, 3), np.uint8)


def test_data_sets_that_do_not_fit_are_said():
    for data, words in (
        (_Random(), "random transforms"), (TensorDataset(torch.zeros(2, 4, 4)), "1 parts"),
        (Subset(Pictures(), []), "empty"), (7, "type int"), ((PIXELS,), "tuple of 1"),
        (Subset(Pictures(), [1, 2]), "without gaps"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            given_source(data)


def test_the_fingerprint_is_that_of_pixels_and_labels():
    def fingerprint(data: object) -> str:
        return Data(given_source(data), DataConfig(source="given")).fingerprint

    pixels = PIXELS.copy()
    pixels[5, 7, 11, 2] ^= 1
    unnamed = Subset(Pictures(), range(6))
    given = ((PIXELS, LABELS), (pixels, LABELS), (PIXELS, LABELS[::-1]), PIXELS, Pictures(), unnamed)
    prints = {fingerprint(data) for data in given}
    assert len(prints) == 6  # data sets differ from each other by their class names
    assert fingerprint(Pictures()) == fingerprint(Pictures())
