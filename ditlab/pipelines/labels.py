"""Class labels as users write them: names in any case or Unicode form, one of a class's synonyms, or numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

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
        raise UserError(f"label {wanted!r} matches {len(found)} classes; give the number of one: {listed}")
    if found:
        return found[0]
    try:
        number = int(wanted)
    except ValueError:
        raise UserError(
            f"unknown label {wanted!r}; {nearest(str(wanted), names or map(str, range(classes)))}"
        ) from None
    if not 0 <= number < classes:
        raise UserError(f"label {wanted} is out of range: this model has {classes} classes, 0 to {classes - 1}")
    return number


def matching_labels(wanted: str, names: Sequence[str]) -> list[int]:
    """The classes that a label names, by the closest kind of match that there is.

    The same text in Unicode's form NFC, then in any case, then one of the comma-separated synonyms that ImageNet's names
    consist of.
    """
    for keys in (_exactly, _caseless, _parts):
        key = keys(wanted)
        found = [index for index, name in enumerate(names) if len(key) == 1 and key[0] in keys(name)]
        if found:
            return found
    return []


def split_labels(text: str, names: Sequence[str]) -> list[str]:
    """Labels separated by commas; a name that contains commas (``tench, Tinca tinca``) stays whole."""
    known = {_parts(name) for name in names if "," in name}
    parts, found = text.split(","), list[str]()
    while parts:
        length = next((end for end in range(len(parts), 1, -1) if _parts(",".join(parts[:end])) in known), 1)
        found.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return [label for label in found if label]


def _exactly(name: str) -> tuple[str, ...]:
    return (unicodedata.normalize("NFC", name),)


def _caseless(name: str) -> tuple[str, ...]:
    return (",".join(_parts(name)),)


def _parts(name: str) -> tuple[str, ...]:
    """The synonyms in a name, without differences of case, of Unicode form and of spaces around commas."""
    return tuple(unicodedata.normalize("NFC", part).strip().casefold() for part in name.split(","))
