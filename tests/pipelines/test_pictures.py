import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from ditlab.encoders import AutoencoderConfig, new_kl
from ditlab.pipelines import SampleConfig, filmstrip, grid, write_png
from ditlab.pipelines.pictures import image_files, label_font

WHITE = 255


def images(count: int, height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, (count, height, width, channels), np.uint8)


def tiles(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Find the tiles on white paper by looking: (rows, columns, height, width) or (.., channels), shrunk to their size.

    Only for pictures whose tiles hold no white and that have no text.
    """
    pixels = np.asarray(picture)
    blank = (pixels if pixels.ndim == 2 else pixels.min(axis=2)) == WHITE
    rows, columns = (_spans(~blank.all(axis=axis)) for axis in (1, 0))
    found = []
    for top, bottom in rows:
        found.append([])
        for left, right in columns:
            scale = (bottom - top) // height
            assert (bottom - top, right - left) == (scale * height, scale * width)
            found[-1].append(pixels[top:bottom, left:right][::scale, ::scale])
            enlarged = found[-1][-1].repeat(scale, axis=0).repeat(scale, axis=1)
            np.testing.assert_array_equal(pixels[top:bottom, left:right], enlarged)
    return np.array(found)


def _spans(inked: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inked.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize(
    ("channels", "height", "width", "scale"),
    [(1, 8, 8, 8), (3, 28, 28, 3), (3, 8, 12, 6), (4, 40, 16, 2), (1, 64, 64, 1), (3, 100, 60, 1)],
)
def test_tiles_are_enlarged_by_a_whole_number_with_their_colours_exact(
    channels: int, height: int, width: int, scale: int
):
    made = images(7, height, width, channels)
    picture = grid(made[:6], 3)
    found = tiles(picture, height, width)
    np.testing.assert_array_equal(found.reshape(6, height, width, *[channels] * (channels > 1)), made[:6].squeeze())
    down, across = (np.array(_spans(~(_gray(picture) == WHITE).all(axis=axis))) for axis in (1, 0))
    assert (down[:, 1] - down[:, 0] == scale * height).all()
    assert (across[:, 1] - across[:, 0] == scale * width).all()
    gaps = {*(down[1:, 0] - down[:-1, 1]), *(across[1:, 0] - across[:-1, 1])}
    margins = {down[0, 0], across[0, 0], picture.height - down[-1, 1], picture.width - across[-1, 1]}
    assert len(gaps) == 1
    assert gaps == margins
    assert 2 <= gaps.pop() <= scale * max(height, width) // 8
    assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]


def _gray(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 2 else pixels.min(axis=2)


def test_a_last_row_that_is_not_full_stays_white_at_its_end():
    made = images(5, 8, 8, 3)
    picture = grid(made, 3)
    width, height = picture.size
    assert (np.asarray(picture)[height // 2 + 2 :, width * 2 // 3 + 2 :] == WHITE).all()
    np.testing.assert_array_equal(tiles(picture.crop((0, 0, width, height // 2)), 8, 8)[0], made[:3])


@pytest.mark.parametrize("channels", [2, 5])
def test_of_odd_channel_counts_the_first_is_shown(channels: int):
    made = images(4, 8, 8, channels)
    np.testing.assert_array_equal(tiles(grid(made, 2), 8, 8).reshape(4, 8, 8), made[..., 0])


@pytest.mark.parametrize("side", [8, 28, 64, 200])
@pytest.mark.parametrize("channels", [1, 3])
def test_names_stand_beside_their_tiles_touching_neither_tile_nor_edge(side: int, channels: int):
    made = np.zeros((6, side, side, channels), np.uint8) + 120
    rows, columns = ("Ankle boot", "gjpqy"), ("Tjgq", "two", "three")
    bare, named = _gray(grid(made, 3)), _gray(grid(made, 3, rows, columns))
    left, top = named.shape[1] - bare.shape[1], named.shape[0] - bare.shape[0]
    np.testing.assert_array_equal(named[top:, left:], bare)
    down, across = _spans((bare != WHITE).any(axis=1)), _spans((bare != WHITE).any(axis=0))
    gap = down[0][0]
    margin, head = named[:, : left + gap], named[: top + gap]
    for part in (margin, head):
        assert (part < 100).any()
        for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
            assert (edge == WHITE).all()
    for start, stop in down:
        inked = np.flatnonzero((margin[top + start : top + stop] < 200).any(axis=1))
        assert abs(inked.mean() - (stop - start) / 2) < (stop - start) / 6
    for start, stop in across:
        inked = np.flatnonzero((head[:, left + start : left + stop] < 200).any(axis=0))
        assert abs(inked.mean() - (stop - start) / 2) < (stop - start) / 10


def test_a_name_too_long_for_its_column_is_cut_short_and_overlaps_no_other():
    made = np.zeros((3, 8, 8, 1), np.uint8)
    long = "a very long name of a class"
    named = np.asarray(grid(made, 3, (), (long, long, "b")))
    bare = np.asarray(grid(made, 3))
    head = named[: named.shape[0] - bare.shape[0]]
    columns = _spans(~(bare == WHITE).all(axis=0))
    between = np.ones(head.shape[1], bool)
    for start, stop in columns:
        between[start:stop] = False
        assert (head[:, start:stop] < 200).any()
    assert (head[:, between] == WHITE).all()


def test_surplus_names_are_not_drawn():
    made = np.zeros((2, 8, 8, 1), np.uint8)
    few = grid(made, 2, ("one",), ("a", "b"))
    np.testing.assert_array_equal(np.asarray(grid(made, 2, ("one", "one"), ("a", "b", "c", "d"))), np.asarray(few))


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
@pytest.mark.parametrize("pixels", [(1, 8, 8), (3, 8, 12)])
def test_a_filmstrip_ends_in_the_sample(make: Callable, sampler: str, pixels: tuple[int, int, int]):
    model = make(pixels)
    config = SampleConfig(sampler, 12)
    found = _frames(filmstrip(model, ["fish", "cat"], 3, 2, config, frames=6), 2, 6, *pixels[1:])
    (sample,) = model.batches(["fish", "cat"], 3, 2, config)
    for k in range(2):
        np.testing.assert_array_equal(found[2 * k, -1].reshape(sample[k].shape), sample[k])
    assert not np.array_equal(found[0, -1], found[2, -1])


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_a_filmstrip_begins_with_noise_and_the_data_expected_of_it(make: Callable, sampler: str):
    model = make((3, 8, 12))
    config = SampleConfig(sampler, 40)
    found = _frames(filmstrip(model, None, 3, 2, config, frames=6), 2, 6, 8, 12).astype(float)
    first, *_ = model.states(model.condition(None, 2), 3, 0, config)
    for k in range(2):
        seed = int(np.random.SeedSequence([3, k]).generate_state(1, np.uint64)[0])
        noise = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(seed))
        x, x0, end = found[2 * k, 0].ravel(), found[2 * k + 1, 0].ravel(), found[2 * k, -1].ravel()
        shown, expected = (
            model.autoencoder.decode(latent[None])[0].clamp(-1, 1).permute(1, 2, 0).flatten().numpy()
            for latent in (noise, first.x0[k])
        )
        np.testing.assert_allclose(x, (shown + 1) * 127.5, atol=0.51)
        assert np.corrcoef(shown, end)[0, 1] < 0.9
        np.testing.assert_allclose(x0, (expected + 1) * 127.5, atol=0.51)


def _frames(strip: Image.Image, count: int, frames: int, height: int, width: int) -> np.ndarray:
    """The tiles (2 count, frames, height, width) or (.., channels) of a strip, measured from its lower right corner."""
    blank = grid(np.zeros((2 * count * frames, height, width, 1), np.uint8), frames)
    inked = ~(np.asarray(blank) == WHITE)
    down, across = (_spans(inked.any(axis=axis)) for axis in (1, 0))
    scale = (down[0][1] - down[0][0]) // height
    pixels = np.asarray(strip)[strip.height - blank.height :, strip.width - blank.width :]
    return np.array([[pixels[a:b:scale, c:d:scale] for c, d in across] for a, b in down])


def test_a_filmstrip_of_fewer_steps_than_frames_shows_each_step_once(make: Callable):
    strip = filmstrip(make(), None, 0, 1, SampleConfig("euler", 3))
    four = grid(np.zeros((8, 8, 8, 1), np.uint8), 4)
    assert 0 < strip.width - four.width < 64  # the names' room
    one = filmstrip(make(), None, 0, 1, SampleConfig("euler", 1))
    assert one.width < strip.width


def test_a_filmstrip_of_latents_is_decoded(make: Callable):
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 8)), 3, 0).eval()
    model = make((3, 8, 8), autoencoder=autoencoder)
    config = SampleConfig("euler", 4)
    found = _frames(filmstrip(model, None, 0, 2, config), 2, 5, 8, 8)
    (sample,) = model.batches(None, 0, 2, config)
    np.testing.assert_array_equal(found[0, -1], sample[0])
    np.testing.assert_array_equal(found[3, -1], sample[1])  # the data expected at the end is the sample


def settings_of(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        return json.loads(picture.info["ditlab"])


def test_a_png_tells_how_it_was_made(tmp_path: Path):
    picture = grid(images(4, 8, 8, 3), 2)
    write_png(picture, tmp_path / "deep" / "a.png", {"seed": 3, "labels": ["naïve", "猫"], "guidance": 1.5})
    assert settings_of(tmp_path / "deep" / "a.png") == {"seed": 3, "labels": ["naïve", "猫"], "guidance": 1.5}
    with Image.open(tmp_path / "deep" / "a.png") as back:
        np.testing.assert_array_equal(np.asarray(back), np.asarray(picture))
    write_png(picture, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as back:
        assert "ditlab" not in back.info


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, refuses: Callable):
    (tmp_path / "file").write_text("x")
    refuses(lambda: write_png(grid(images(1, 8, 8, 1), 1), tmp_path / "file" / "a.png"), "cannot write", "file")


def test_text_on_pictures_with_transparency_is_opaque():
    picture = np.asarray(grid(images(2, 8, 8, 4), 2, ("row",), ("a", "b")))
    assert (picture[:12, :, 3] == 255).all()
    assert picture[:16, :, 0].min() < 100


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "猫" * 85])
def test_a_class_of_any_legal_folder_name_gives_a_legal_file_name(name: str, tmp_path) -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    ((file, content),) = image_files(images, np.zeros(1, np.int64), [name], {})
    (tmp_path / f".{file}.tmp").write_bytes(content)  # as files are written before they are renamed
    assert file.startswith(f"000000-{name[:40]}")


@pytest.mark.parametrize("name", ["a/b", "..\\b", "red\x00\n\x1b[0m", "\ud800", "\u202egnp"])
def test_a_prompt_of_any_characters_gives_a_legal_file_name(name: str, tmp_path) -> None:
    ((file, content),) = image_files(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), [name], {})
    (tmp_path / file).write_bytes(content)
    assert file.isprintable()
    assert file.startswith("000000-")


@pytest.mark.parametrize("letter", list("éøçßñłЖλű"))
def test_names_of_classes_are_written_in_their_own_letters(letter: str) -> None:
    missing = "\uffff"  # no character: drawn as the box that stands for all that a font lacks
    assert drawn(label_font(13), letter) != drawn(label_font(13), missing)
    assert drawn(ImageFont.load_default(13), "λ") == drawn(ImageFont.load_default(13), missing)


def drawn(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bytes:
    image = Image.new("L", (24, 24))
    ImageDraw.Draw(image).text((4, 4), text, 255, font)
    return image.tobytes()


def test_names_are_drawn_in_that_font() -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    assert np.any(np.asarray(grid(images, 1, ["é"])) != np.asarray(grid(images, 1, ["ø"])))


@pytest.mark.parametrize("caption", ["word " * 30, "W" * 300, "\u7ea2" * 300, "i", "", "a\nb\tc", "\U0001f431 " * 90])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_captions_stay_under_their_images(caption: str, channels: int) -> None:
    images = np.zeros((4, 16, 16, channels), np.uint8)  # black, and text is not
    plain = np.asarray(grid(images, 2, captions=["x"] * 4).convert("L"))
    drawn = np.asarray(grid(images, 2, captions=["", caption]).convert("L"))
    black = np.flatnonzero((drawn == 0).any(0))
    assert len(black) == 2 * 128
    right = drawn[:, black[128] :]
    below = right[np.flatnonzero((right == 0).any(1))[127] + 1 :]
    text = below[: np.flatnonzero((below == 0).any(1))[0]]
    assert (text < 200).any() == bool(caption)
    assert (text[:, 128:] > 200).all()
    assert (drawn[:, : black[127] + 1] != 40).all()
    assert drawn.shape[1] == plain.shape[1]
