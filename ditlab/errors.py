"""Errors that a user can fix, shown as one line with exit code 2, and a requested stop."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that a user can cause and fix.

    The message is one line: what was wrong, with the value, and what would be right.
    The command line prints it and exits with code 2; the Python API raises it.
    """


class Stopped(Exception):  # noqa: N818 - not an error
    """A run received SIGTERM and has saved its state; the message tells how to resume. Exit code 0."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint with the closest known word, then the known ones: ``did you mean 'ddim'? (known: ddim, ddpm)``.

    Up to 12 known words are listed. Without a close one they are only listed.
    """
    words = [str(item) for item in known]
    lowered = {item.lower(): item for item in words}
    close = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=0.5)
    shown = ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
    return f"did you mean {lowered[close[0]]!r}? (known: {shown})" if close else f"known: {shown}"


def check_divisible(what: str, size: tuple[int, ...], by: int, why: str, hint: str = "") -> None:
    """Refuse a size that a network cannot cut into equal parts.

    Args:
        what: has this size: ``images``.
        size: in pixels, (H, W).
        by: must divide every side.
        why: names the divisor, with its number: ``patch 2``.
        hint: ends the message, as with the flag that sets the size.

    Raises:
        UserError: a side is not divisible; the message names the nearest sizes that are.
    """
    for side in size:
        if side < by or side % by:
            below = side // by * by
            nearest_sizes = f"{below} or {below + by}" if below else str(by)
            shape = "x".join(map(str, size))
            raise UserError(
                f"{what} of {shape} are not divisible by {why}; nearest sizes for {side}: {nearest_sizes}{hint}"
            )
