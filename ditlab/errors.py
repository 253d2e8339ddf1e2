"""What reaches a person as one line: errors, with exit code 2, and a stop that was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error a person can cause and mend.

    The message is one line: what was wrong, with the value, and what would be right.
    The command line prints it and exits with code 2; the Python API raises it.
    """


class Stopped(Exception):  # noqa: N818 - it is no error
    """A long run was told to stop (SIGTERM) and has saved all it did; the message says how it goes on. Exit code 0."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, then the known ones: ``did you mean 'ddim'? (ddim, ddpm)``.

    Up to 12 known words are listed. Never fails: with nothing close it only lists.
    """
    words = [str(item) for item in known]
    lowered = {item.lower(): item for item in words}
    close = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=0.5)
    shown = ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
    return f"did you mean {lowered[close[0]]!r}? (known: {shown})" if close else f"known: {shown}"


def check_divisible(what: str, sides: tuple[int, int], by: int, why: str, mend: str = "") -> None:
    """Refuse sides that a network cannot cut into equal parts.

    Args:
        what: they are of: ``images``.
        sides: height and width.
        by: what must divide both.
        why: names it, with its number: ``patch 2``.
        mend: how another size is given, at the end of the line.

    Raises:
        UserError: it does not divide one; the line names the sizes nearest to it.
    """
    for side in sides:
        if side < by or side % by:
            below = side // by * by
            sizes = f"{below} or {below + by}" if below else str(by)
            raise UserError(
                f"{what} of {sides[0]}x{sides[1]} are not divisible by {why}; nearest sizes for {side}: {sizes}{mend}"
            )
