"""Emoji: from made-up packages of the same layout to rendered pictures, their names, splits and cache."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditlab.data import DataConfig, Dataset, open_data, read_index, write_index
from ditlab.data.emoji import STYLES, EmojiSource, caption_name, splits

DISC = '<circle cx="16" cy="16" r="12" fill="#f00"/>'
HALF = '<path fill="#00f" d="M0 0h16v32H0z"/>'
WIDE = '<path fill="#0f0" d="M0 0h32v16H0z"/>'
CONCEPTS = [f"thing number {index}" for index in range(150)]


def square(index: int) -> str:
    return f'<path fill="#{index:02x}8040" d="M8 8h16v16H8z"/>'


def package(folder: Path, name: str, icons: dict[str, dict], aliases: dict | None = None, **info) -> None:
    place = folder / "node_modules" / "@iconify-json" / name
    place.mkdir(parents=True)
    content = {"prefix": name, "icons": icons, "aliases": aliases or {}, "width": 32, "height": 32}
    (place / "icons.json").write_text(json.dumps(content))
    licence = {"title": "MIT License", "spdx": "MIT", "url": "https://example.org/licence"}
    (place / "info.json").write_text(json.dumps({"author": {"name": "Ann"}, "license": licence, **info}))
    (place / "package.json").write_text(json.dumps({"name": f"@iconify-json/{name}", "version": "1.2.3"}))


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """Noto: three pictures and variants that are not used; Twemoji: one of these under another name; both: many squares."""
    toned = {f"half-{tone}": {"body": WIDE} for tone in ("light", "medium", "medium-dark", "dark-light")}
    noto = {
        "red-disc": {"body": DISC}, "half": {"body": HALF}, "half-dark-skin-tone": {"body": HALF}, **toned,
        "flag-for-canada": {"body": WIDE, "height": 16}, "a": {"body": DISC}, "copy-of-disc": {"body": DISC},
        "gone": {"body": square(255), "hidden": True}, "letters": {"body": "<text>A</text>"},
        "red": {"body": square(254)}, "red-light": {"body": square(253)},
    }  # fmt: skip
    squares = {name.replace(" ", "-"): {"body": square(index)} for index, name in enumerate(CONCEPTS)}
    folder = tmp_path / "emoji"
    package(folder, "noto", {**noto, **squares}, {"ball": {"parent": "red-disc"}})
    mirrored = {"half": {"parent": "left", "hFlip": True}, "red": {"parent": "scarlet"}}
    twemoji = {"ball": {"body": DISC}, "left": {"body": HALF}, "scarlet": {"body": WIDE}, **squares}
    package(folder, "twemoji", twemoji, mirrored)
    return folder


def opened(folder: Path, **fields) -> Dataset:
    return open_data(DataConfig("emoji", str(folder), **fields))


def all_of(folder: Path, **fields) -> dict[tuple[str, str], tuple[str, np.ndarray]]:
    """By style and concept the split and pixels (H, W, 3)."""
    found = {}
    for split in ("train", "valid", "test"):
        data = opened(folder, split=split, **fields)
        source, images = data.source, data.load()
        assert isinstance(source, EmojiSource)
        for word, concept, pixels in zip(source.words, source.concepts, images.pixels, strict=True):
            assert (word, concept) not in found
            found[word, concept] = (split, pixels.transpose(1, 2, 0))
    return found


def test_the_pictures_are_those_of_the_packages_on_white(emoji: Path) -> None:
    found = all_of(emoji, size=(32,))
    rows, columns = np.mgrid[:32, :32] + 0.5
    distance = np.hypot(rows - 16, columns - 16)
    for disc in (found["noto", "red disc"][1], found["twemoji", "red disc"][1]):
        assert (disc[distance < 11] == (255, 0, 0)).all()
        assert (disc[distance > 13] == 255).all()
    half = found["noto", "half"][1]
    assert (half[:, :16] == (0, 0, 255)).all()
    assert (half[:, 16:] == 255).all()
    flag = found["noto", "flag of canada"][1]  # 32x16, centred
    assert (flag[8:24] == (0, 255, 0)).all()
    assert (flag[:8] == 255).all()
    assert (flag[24:] == 255).all()


def test_any_size_is_rendered_and_not_resampled(emoji: Path) -> None:
    assert opened(emoji).shape == (3, 64, 64)
    half = all_of(emoji, size=(16, 24))["noto", "half"][1]
    assert half.shape == (16, 24, 3)
    assert (half[:, 4:12] == (0, 0, 255)).all()
    assert (half[:, :4] == 255).all()
    assert (half[:, 12:] == 255).all()


def test_variants_copies_and_letters_are_dropped_and_names_agree_between_styles(emoji: Path) -> None:
    names = sorted(name for name in all_of(emoji, size=(8,)) if name[1] not in CONCEPTS)
    noto = ["flag of canada", "half", "red", "red disc", "red light"]
    assert names == [*(("noto", name) for name in noto), *(("twemoji", name) for name in ("left", "red", "red disc"))]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dragon-face", "dragon face"), ("flag-canada", "flag of canada"), ("flag-for-flag-chad", "flag of chad"),
        ("flag-in-hole", "flag in hole"), ("one-oclock", "one o'clock"), ("womans-hat", "woman's hat"),
        ("mens-room", "men's room"),
        ("woman-and-man-holding-hands", "woman and man holding hands"),
    ],
)  # fmt: skip
def test_names_are_words(name: str, words: str) -> None:
    assert caption_name(name) == words


def test_captions_name_the_style_before_after_and_not(emoji: Path) -> None:
    data = opened(emoji, size=(8,))
    source = data.source
    assert isinstance(source, EmojiSource)
    row = next(row for row, concept in enumerate(source.concepts) if source.words[row] == "twemoji")
    concept = source.concepts[row]
    assert data.captions is not None
    assert data.captions[row] == (f"twemoji style {concept}", f"{concept}, twemoji style", concept)
    assert source.name(row) == f"twemoji {concept}"
    assert data.names == ()
    assert f"captions: {len(data):,} of {len(data):,} images have several" in data.info.notes
    said = "@iconify-json/noto 1.2.3 (Ann, MIT, https://example.org/licence)"
    assert any(note.startswith("noto style: ") and note.endswith(said) for note in data.info.notes)
    assert "not installed: @iconify-json/emojione" in data.info.notes


def test_held_out_concepts_are_in_no_other_split_and_held_out_pairs_have_their_concept_in_training(emoji: Path) -> None:
    found = all_of(emoji, size=(8,))
    of = {split: {name for name, (kind, _) in found.items() if kind == split} for split in ("train", "valid", "test")}
    concepts = {split: {concept for _, concept in pairs} for split, pairs in of.items()}
    assert len(concepts["test"]) >= 2
    assert not concepts["test"] & (concepts["train"] | concepts["valid"])
    assert len(of["valid"]) >= 2
    assert concepts["valid"] <= concepts["train"]
    both = concepts["test"] & set(CONCEPTS)
    assert {("noto", name) for name in both} | {("twemoji", name) for name in both} <= of["test"]
    again = all_of(emoji, size=(12,))
    assert {name: kind for name, (kind, _) in again.items()} == {name: kind for name, (kind, _) in found.items()}
    held = f"held out: {len(concepts['test'])} concepts in all styles (split test), {len(of['valid'])} in one style"
    assert any(note.startswith(held) for note in opened(emoji, size=(8,)).info.notes)


def test_splits_are_fixed_in_their_proportions_and_with_fewer_styles() -> None:
    concepts = [f"concept {index}" for index in range(4000)]
    pairs = [(concept, word) for concept in concepts for word in STYLES]
    found = splits([concept for concept, _ in pairs], [word for _, word in pairs])
    counts = {split: found.count(split) / len(found) for split in ("train", "valid", "test")}
    assert abs(counts["test"] - 0.05) < 0.01
    assert abs(counts["valid"] - 0.1 / len(STYLES)) < 0.005
    alone = splits(concepts, ["noto"] * len(concepts))
    assert set(alone) == {"train", "test"}
    first = [split for (_, word), split in zip(pairs, found, strict=True) if word == "noto"]
    assert [split == "test" for split in alone] == [split == "test" for split in first]
    assert splits(["dragon face", "ghost"], ["noto", "noto"]) == ["train", "train"]  # for all time


def test_pictures_are_rendered_once_for_a_size_and_a_version(emoji: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(emoji, size=(8,))
    cache = emoji / "rendered-8x8.npz"
    before = cache.stat().st_mtime_ns
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)  # what is rendered needs it no more
    assert opened(emoji, size=(8,)).fingerprint == first.fingerprint
    monkeypatch.undo()
    assert cache.stat().st_mtime_ns == before
    assert opened(emoji, size=(8,), split="test").fingerprint != first.fingerprint
    cache.write_bytes(cache.read_bytes()[:100])
    assert opened(emoji, size=(8,)).fingerprint == first.fingerprint
    config, index = first.config, emoji / "index.json"
    write_index(index, first)
    assert read_index(index, config) == first.info
    icons = emoji / "node_modules/@iconify-json/noto/icons.json"
    icons.write_text(icons.read_text().replace("#f00", "#ffff00"))
    assert read_index(index, config) is None
    assert (all_of(emoji, size=(8,))["noto", "red disc"][1][4, 4] == (255, 255, 0)).all()


def test_what_is_missing_or_damaged_is_one_line(emoji: Path, tmp_path: Path, refuses: Callable, monkeypatch) -> None:
    place = emoji / "node_modules/@iconify-json/noto"
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    refuses(lambda: opened(emoji), "resvg-py", "pip install 'ditlab[emoji]'")
    monkeypatch.undo()
    refuses(lambda: opened(emoji, size=(8,), split="vaild"), "vaild")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    refuses(lambda: opened(tmp_path / "photos"), "photos contains none", "npm install --prefix", "empty folder")
    monkeypatch.setenv("PATH", str(tmp_path))
    refuses(lambda: opened(tmp_path / "new"), "needs npm", "apt-get install npm", "npm install --prefix", "noto@")
    content = (place / "icons.json").read_text()
    (place / "icons.json").write_text(content.replace('r=\\"12\\"', "r="))
    refuses(lambda: opened(emoji), "@iconify-json/noto 1.2.3", "damaged icon red-disc", "install it again")
    (place / "icons.json").write_text(content[:100])
    refuses(lambda: opened(emoji), "icons.json", "cannot be read", "install the package again")


@pytest.mark.parametrize("spdx", ["CC-BY-SA-4.0", "CC-BY-NC-4.0", ""])
def test_a_package_of_another_licence_is_not_used(emoji: Path, spdx: str, refuses: Callable) -> None:
    info = emoji / "node_modules/@iconify-json/twemoji/info.json"
    info.write_text(json.dumps({"author": {"name": "Bo"}, "license": {"spdx": spdx}} if spdx else {}))
    data = opened(emoji, size=(8,))
    assert isinstance(data.source, EmojiSource)
    assert set(data.source.words) == {"noto"}
    said = [note for note in data.info.notes if note.startswith("not used: @iconify-json/twemoji")]
    assert len(said) == 1
    assert (spdx or "no licence") in said[0]
    refuses(lambda: opened(emoji, size=(8,), split="valid"), "no valid split")


def npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_packages_are_installed_by_npm_at_the_first_use(emoji: Path, tmp_path: Path, monkeypatch) -> None:
    npm(tmp_path / "bin", f'echo "$@" > {tmp_path}/said; cp -r {emoji}/node_modules "$3/"', monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = DataConfig("emoji", size=(8,))
    data = open_data(config)
    assert data.fingerprint == opened(emoji, size=(8,)).fingerprint
    said = (tmp_path / "said").read_text().split()
    assert said[:3] == ["install", "--prefix", str(tmp_path / "cache" / "ditlab" / "emoji")]
    assert "--ignore-scripts" in said
    assert [f"@iconify-json/{name}" for name in STYLES.values()] == [word for word in said if word.startswith("@")]
    (tmp_path / "said").unlink()
    assert open_data(replace(config, split="test")).fingerprint != data.fingerprint
    assert not (tmp_path / "said").exists()


def test_what_npm_says_when_it_fails_is_passed_on(tmp_path: Path, monkeypatch, refuses: Callable) -> None:
    npm(tmp_path / "bin", "echo 'npm error ENOTFOUND registry' >&2; exit 1", monkeypatch)
    refuses(lambda: opened(tmp_path / "new"), "npm error ENOTFOUND registry", "npm install --prefix")
