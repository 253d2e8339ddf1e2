"""Find the labels that are given by name or by number."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ditlab.errors import UserError, nearest


def find_label(wanted: str | int, names: Sequence[str], classes: int) -> int:
    """The index of a label given by name, in any case and Unicode form, or by number.

    Names come first, since names may be numbers, and the exact case before any case.

    Raises:
        UserError: unknown or out of range.
    """
    if isinstance(wanted, str):
        for form in (_nfc, _key):
            known = [form(name) for name in names]
            if form(wanted) in known:
                return known.index(form(wanted))
    try:
        number = int(wanted)
    except ValueError:
        raise UserError(
            f"unknown label {wanted!r}; {nearest(str(wanted), names or map(str, range(classes)))}"
        ) from None
    if not 0 <= number < classes:
        raise UserError(f"label {wanted} is out of range: this model has {classes} classes, 0 to {classes - 1}")
    return number


def split_labels(text: str, names: Sequence[str]) -> list[str]:
    """Labels separated by commas; a name that contains commas (``tench, Tinca tinca``) stays whole."""
    known = {_key(name) for name in names if "," in name}
    parts, found = text.split(","), list[str]()
    while parts:
        length = next((end for end in range(len(parts), 1, -1) if _key(",".join(parts[:end])) in known), 1)
        found.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return [label for label in found if label]


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    """A name without the differences of case, of Unicode form and of spaces around commas."""
    return ",".join(part.strip() for part in _nfc(name).lower().split(","))
