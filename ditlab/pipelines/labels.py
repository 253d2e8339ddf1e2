"""Class labels as users write them: names in any case or Unicode form, one of a class's synonyms, or numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from ditlab.encoders.text_tokens import split_words
from ditlab.errors import UserError, nearest


def find_label(wanted: str | int, names: Sequence[str], classes: int) -> int:
    """The index of a label given by name, as ``matching_labels`` compares them, or by number.

    Names come first, since names may be numbers.

    Raises:
        UserError: unknown, out of range, or a match of several classes.
    """
    found = matching_labels(wanted, names) if isinstance(wanted, str) else []
    if len(found) > 1:
        listed = ", ".join(f"{index} ({names[index]})" for index in found)
        raise UserError(f"label {str(wanted)[:100]!r} matches {len(found)} classes; give the number of one: {listed}")
    if found:
        return found[0]
    try:
        number = int(wanted)
    except ValueError:
        shown = str(wanted)[:100]
        raise UserError(f"unknown label {shown!r}; {nearest(shown, names or map(str, range(classes)))}") from None
    if not 0 <= number < classes:
        raise UserError(
            f"label {str(wanted)[:100]} is out of range: this model has {classes} classes, 0 to {classes - 1}"
        )
    return number


def matching_labels(wanted: str, names: Sequence[str]) -> list[int]:
    """The classes that a label names, by the closest kind of match that there is.

    The same text in Unicode's form NFC, then in any case, then one of the comma-separated synonyms that ImageNet's names
    consist of.
    """
    for keys, index in zip(KINDS, _by_key(tuple(names)), strict=True):
        key = keys(wanted)
        found = index.get(key[0], ()) if len(key) == 1 else ()
        if found:
            return list(found)
    return []


def split_labels(text: str, names: Sequence[str]) -> list[str]:
    """Labels separated by commas; a name that contains commas (``tench, Tinca tinca``) stays whole."""
    known = {_parts(name) for name in names if "," in name}
    longest = max(map(len, known), default=1)
    parts, found, start = text.split(","), list[str](), 0
    while start < len(parts):
        ends = range(min(len(parts), start + longest), start + 1, -1)
        end = next((end for end in ends if _parts(",".join(parts[start:end])) in known), start + 1)
        found.append(",".join(parts[start:end]).strip())
        start = end
    return [label for label in found if label]


def prompt_labels(prompt: str, names: Sequence[str], classes: int) -> list[int]:
    """The classes of a prompt to a model of labels: a list separated by commas, or the one class that a text names.

    ``sneaker, bag`` is two classes, ``a red sneaker`` is one, an empty prompt is none. See ``named_labels``.

    Raises:
        UserError: an unknown label in a list; a text that names no class, or several.
    """
    parts = split_labels(prompt, names)
    if any(is_label(part, names, classes) for part in parts) or not parts:
        return [find_label(part, names, classes) for part in parts]
    names, shown = names or [str(k) for k in range(classes)], repr(prompt[:60])
    found = named_labels(prompt, names)
    if not found:
        raise UserError(f"prompt {shown} names no class of this model; {nearest(prompt[:60], names)}")
    if len(found) > 1:
        listed = ", ".join(names[label] for label in found[:12]) + (", ..." if len(found) > 12 else "")
        raise UserError(
            f"prompt {shown} names {len(found)} classes ({listed}); give one, or a list of them separated by commas"
        )
    return found


def named_labels(text: str, names: Sequence[str]) -> list[int]:
    """The classes whose name, or one of its synonyms, is in a text, in the order of the text.

    Words are compared without case, and may have a plural s. Of names at one place the longest counts: a T-shirt is no shirt.
    A slash separates synonyms here too, as in ``T-shirt/top``.
    """
    known, words, found, start = _by_words(tuple(names)), _words(text), dict[int, None](), 0
    longest = max(map(len, known), default=1)
    while start < len(words):
        lengths = range(min(longest, len(words) - start), 0, -1)
        length = next((length for length in lengths if tuple(words[start : start + length]) in known), 1)
        found |= dict.fromkeys(known.get(tuple(words[start : start + length]), ()))
        start += length
    return list(found)


@lru_cache(64)
def _by_words(names: tuple[str, ...]) -> dict[tuple[str, ...], list[int]]:
    """The classes by the words of each synonym, the last in the singular and the plural."""
    found = dict[tuple[str, ...], list[int]]()
    for label, name in enumerate(names):
        for synonym in {tuple(_words(part)) for part in name.replace("/", ",").split(",")} - {()}:
            for ending in ("", "s", "es"):
                found.setdefault((*synonym[:-1], synonym[-1] + ending), []).append(label)
    return found


def _words(text: str) -> list[str]:
    return [word for word in split_words(text) if word not in "-'_"]


def is_label(wanted: str, names: Sequence[str], classes: int) -> bool:
    """Whether a text is a label, by name or number."""
    return bool(matching_labels(wanted, names)) or (wanted.isdecimal() and len(wanted) < 10 and int(wanted) < classes)


def _exactly(name: str) -> tuple[str, ...]:
    return (unicodedata.normalize("NFC", name),)


def _caseless(name: str) -> tuple[str, ...]:
    return (",".join(_parts(name)),)


def _parts(name: str) -> tuple[str, ...]:
    """The synonyms in a name, without differences of case, of Unicode form and of spaces around commas."""
    return tuple(unicodedata.normalize("NFC", part).strip().casefold() for part in name.split(","))


KINDS = (_exactly, _caseless, _parts)  # of matches, the closest first


@lru_cache(64)
def _by_key(names: tuple[str, ...]) -> tuple[dict[str, list[int]], ...]:
    """For each kind of match, the classes by the keys of their names."""
    found: tuple[dict[str, list[int]], ...] = ({}, {}, {})
    for keys, index in zip(KINDS, found, strict=True):
        for label, name in enumerate(names):
            for key in dict.fromkeys(keys(name)):
                index.setdefault(key, []).append(label)
    return found
