"""Emoji of several styles with captions, rendered from npm packages that a user installs: nothing of them is in ditlab.

The packages are those of Iconify: ``icons.json`` has the body of each SVG by name, ``info.json`` the licence. Variants of skin
tones are dropped.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditlab.data.arrays import ArraySource
from ditlab.data.config import DataConfig, target_size
from ditlab.data.source import Once, call, stamps_of
from ditlab.errors import UserError
from ditlab.runtime import files

STYLES = {  # word of the captions -> npm package; licences that allow to share weights trained on the pictures
    "noto": "noto@1.2.9",
    "blob": "noto-v1@1.2.5",
    "fluent": "fluent-emoji-flat@1.2.6",
    "twemoji": "twemoji@1.2.5",
    "emojione": "emojione@1.2.3",
}
LICENCES = ("Apache-2.0", "CC-BY-4.0", "MIT")
SCOPE = "@iconify-json"
SIZE = (64, 64)  # pixels, unless the config says otherwise
TEST, VALID = 0.05, 0.1  # part of the concepts held out in all styles, and in one style
_VERSION = 1  # of the rendering, part of the key of its cache
_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONE = re.compile(rf"(-({'|'.join(sorted(_TONES, key=len, reverse=True))}))+$")


@dataclass(frozen=True)
class Style:
    """An installed package: its files and what they say of its version, author and licence."""

    word: str
    folder: Path
    version: str
    author: str
    licence: str
    url: str

    def describe(self) -> str:
        """For notes and model cards."""
        return f"{SCOPE}/{self.folder.name} {self.version} ({self.author}, {self.licence}, {self.url})"


class EmojiSource(ArraySource):
    """Emoji of one split, uint8 RGB on white, without classes; ``concepts`` and ``words`` are the name and style of each.

    The split ``test`` has concepts that are in no other split, ``valid`` a style each of concepts whose other styles are in
    ``train``. Each image has three captions: with the style before and after the name, and without.
    """

    def __init__(
        self, pixels: np.ndarray, concepts: list[str], words: list[str], split: str, styles: list[Style],
        skipped: list[str],
    ) -> None:  # fmt: skip
        of = splits(concepts, words)
        rows = np.array([row for row, name in enumerate(of) if name == split], np.int64)
        if not len(rows):
            raise UserError(f"emoji has no {split} split in the packages that are installed; give another --data.split")
        stamps = stamps_of(*(style.folder / "icons.json" for style in styles))
        super().__init__("emoji", pixels[rows], np.zeros(len(rows), np.int64), (), stamps)
        self.concepts, self.words = [concepts[row] for row in rows], [words[row] for row in rows]
        pairs = list(zip(self.concepts, self.words, strict=True))
        self.captions = [(f"{word} style {name}", f"{name}, {word} style", name) for name, word in pairs]
        held = Counter({name for name in zip(concepts, of, strict=True) if name[1] == "test"})
        counts = Counter(words)
        self.notes = (
            *(f"{style.word} style: {counts[style.word]:,} emoji of {style.describe()}" for style in styles),
            f"held out: {len(held):,} concepts in all styles (split test), {of.count('valid'):,} in one style (split valid)",
            *skipped,
        )

    def name(self, index: int) -> str:
        """Style and name of an emoji."""
        return f"{self.words[index]} {self.concepts[index]}"

    def identity(self) -> Iterator[bytes]:
        """Pixels and names."""
        yield from super().identity()
        yield json.dumps([self.concepts, self.words]).encode()


def open_emoji(config: DataConfig, once: Once = call) -> EmojiSource:
    """The emoji of a split at the config's size, on white.

    Packages are searched in ``node_modules`` of ``config.path``, by default ``$XDG_CACHE_HOME/ditlab/emoji``; if there are
    none and the folder is empty, npm installs those of ``STYLES``. The pictures are rendered once and kept in the folder.
    Raises a UserError if npm or resvg-py is missing, or a package is damaged.
    """
    folder = Path(config.path).expanduser() if config.path else files.cache_home() / "emoji"
    size = target_size(config) or SIZE
    once(lambda: _prepare(folder, size))
    styles, skipped = installed(folder)
    cached = _read(_cache(folder, size), _key(styles, size))
    if cached is None:
        raise UserError(f"{_cache(folder, size)} cannot be read; remove it")
    return EmojiSource(*cached, config.split, styles, skipped)


def installed(folder: Path) -> tuple[list[Style], list[str]]:
    """The packages in a folder's ``node_modules`` whose licences allow to share trained weights, and notes on others."""
    styles, skipped = [], []
    for word, package in STYLES.items():
        place = folder / "node_modules" / SCOPE / package.partition("@")[0]
        if not (place / "icons.json").is_file():
            skipped.append(f"not installed: {SCOPE}/{place.name}")
            continue
        info, version = _json(place / "info.json"), _json(place / "package.json").get("version", "?")
        licence, author = info.get("license") or {}, info.get("author") or {}
        spdx = str(licence.get("spdx") or licence.get("title") or "no licence")
        style = Style(word, place, version, author.get("name", "?"), spdx, licence.get("url") or author.get("url", ""))
        if spdx in LICENCES:
            styles.append(style)
        else:
            skipped.append(f"not used: {style.describe()}, since its licence may not allow to share trained weights")
    return styles, skipped if styles else []


def splits(concepts: list[str], words: list[str]) -> list[str]:
    """The split of each emoji, by a fixed hash of its concept: the same at any size and with any packages."""
    styles = dict[str, set[str]]()
    for concept, word in zip(concepts, words, strict=True):
        styles.setdefault(concept, set()).add(word)
    found = []
    for concept, word in zip(concepts, words, strict=True):
        digest = hashlib.sha256(concept.encode()).digest()
        part = int.from_bytes(digest[:4]) / 2**32
        held = list(STYLES)[digest[4] % len(STYLES)]
        alone = len(styles[concept]) == 1
        in_valid = part < TEST + VALID and word == held and not alone
        found.append("test" if part < TEST else "valid" if in_valid else "train")
    return found


def caption_name(name: str) -> str:
    """The words of an icon's name: ``flag-for-canada`` is "flag of canada", ``one-oclock`` "one o'clock"."""
    flag = re.fullmatch(r"flag-(?:for-)?(?:flag-)?(?!in-hole)(.+)", name)
    words = f"flag of {flag[1]}".replace("-", " ") if flag else name.replace("-", " ")
    return re.sub(r"\b((?:wo)?m[ae]n)s\b", r"\1's", words.replace("oclock", "o'clock"))


def base_names(icons: Mapping[str, Any]) -> list[str]:
    """Names of icons without hidden ones, variants of skin tones, single letters, and pictures that an earlier name has."""
    found, bodies = [], set[str]()
    for name, icon in icons.items():
        base = _TONE.sub("", name)
        tones = name.count("-") - base.count("-")  # police-car-light is no police car of a skin tone
        toned = base != name and base in icons and (tones > 1 or f"{base}-medium-dark" in icons)
        if not (toned or "skin-tone" in name or len(name) < 2 or icon.get("hidden") or icon["body"] in bodies):
            found.append(name)
            bodies.add(icon["body"])
    return found


def _prepare(folder: Path, size: tuple[int, int]) -> None:
    """Install the packages and render the pictures, where they are missing."""
    if not installed(folder)[0]:
        _install(folder)
    styles, _ = installed(folder)
    if not styles:
        raise UserError(f"{folder} contains none of the packages; {_advice(folder)}")
    key = _key(styles, size)
    if _read(_cache(folder, size), key) is None:
        content = io.BytesIO()
        pixels, concepts, words = _render(styles, size)
        np.savez_compressed(content, key=np.array(key), pixels=pixels, concepts=concepts, words=words)
        files.write_file(_cache(folder, size), content.getvalue())


def _install(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} contains none of the packages; {_advice(folder)}, or give an empty folder")
    command = _command(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except FileNotFoundError as error:
        raise UserError(
            f"emoji needs npm (Debian: apt-get install npm), or these packages: {_advice(folder)}"
        ) from error
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", "") or str(error)
        reason = next((line for line in said.splitlines() if line.strip()), "no reason given")
        raise UserError(f"npm cannot install the packages ({reason}); {_advice(folder)}") from error


def _command(folder: Path) -> list[str]:
    options = ["--ignore-scripts", "--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    return ["npm", "install", "--prefix", str(folder), *options, *(f"{SCOPE}/{package}" for package in STYLES.values())]


def _advice(folder: Path) -> str:
    return f"run: npm install --prefix {folder} " + " ".join(f"{SCOPE}/{package}" for package in STYLES.values())


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); install the package again") from error


def _key(styles: list[Style], size: tuple[int, int]) -> str:
    contents = [[style.word, style.version, (style.folder / "icons.json").stat().st_size] for style in styles]
    return json.dumps([_VERSION, size, contents])


def _cache(folder: Path, size: tuple[int, int]) -> Path:
    return folder / f"rendered-{size[0]}x{size[1]}.npz"


def _read(path: Path, key: str) -> tuple[np.ndarray, list[str], list[str]] | None:
    """Pixels, concepts and words that were rendered; None if they are missing, damaged or of other packages."""
    try:
        with path.open("rb") as file, np.load(file) as stored:  # numpy leaves a damaged file open
            if stored["key"].item() == key:
                return stored["pixels"], stored["concepts"].tolist(), stored["words"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _render(styles: list[Style], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels uint8 (N, H, W, 3), the concept of each emoji and the word of its style."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("emoji needs the package resvg-py; pip install 'ditlab[emoji]'") from error
    from PIL import Image

    side = min(size)
    first: dict[str, Any] = {}
    pixels, concepts, words = [], [], []
    for style in styles:
        package = _json(style.folder / "icons.json")
        first = first or package
        of = _concepts(package, first)
        for name, concept in of.items():
            try:
                svg = _svg(package, name)
                png = resvg_py.svg_to_bytes(
                    svg_string=svg, background="white", width=side, height=side, skip_system_fonts=True
                )
                with Image.open(io.BytesIO(png)) as image:
                    drawn = np.asarray(image.convert("RGB"))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{style.describe()} has a damaged icon {name} ({error}); install it again") from error
            if (drawn == 255).all():  # of text, whose font is missing
                continue
            canvas = np.full((*size, 3), 255, np.uint8)
            top, left = (size[0] - side) // 2, (size[1] - side) // 2
            canvas[top : top + side, left : left + side] = drawn
            pixels.append(canvas)
            concepts.append(concept)
            words.append(style.word)
    if not pixels:
        raise UserError(f"{styles[0].folder.parent} contains no pictures; install the packages again")
    return np.stack(pixels), np.array(concepts), np.array(words)


def _concepts(package: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, str]:
    """By icon the name in words that it has in all packages: that of the first one, which knows other names as aliases."""
    other = dict[str, list[str]]()
    for alias, of in package.get("aliases", {}).items():
        if set(of) == {"parent"}:  # others are mirrored or rotated
            other.setdefault(of["parent"], []).append(alias)
    found = dict[str, str]()
    for name in base_names(package["icons"]):
        known = [alias for alias in (name, *other.get(name, ())) if alias in first["icons"]]
        concept = known[0] if known else first.get("aliases", {}).get(name, {}).get("parent", name)
        if caption_name(concept) not in found.values():
            found[name] = caption_name(concept)
    return found


def _svg(package: Mapping[str, Any], name: str) -> str:
    icon = package["icons"][name]
    box = [icon.get(field, package.get(field, usual)) for field, usual in _BOX.items()]
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    side = max(box[2:])  # a box that is not square is centred in one that is
    return f'<svg {spaces} width="{side}" height="{side}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # of Iconify's format
