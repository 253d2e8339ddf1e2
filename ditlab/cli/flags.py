"""Dataclasses of options from the command line, with one line for what does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from ditlab.errors import UserError, nearest

T = TypeVar("T")


def _flags(kind: type, default: object, prefix: str = "") -> list[str]:
    """Every flag of a dataclass of options; where a field may be one dataclass or another, of the default's."""
    found = []
    types = typing.get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint = types[item.name]
        metadata = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if metadata else hint
        name = f"{prefix}{item.name.replace('_', '-')}"
        value = getattr(default, item.name, None)
        inner = type(value) if dataclasses.is_dataclass(value) else inner
        if dataclasses.is_dataclass(inner):
            found += _flags(inner, value, prefix if metadata else f"{name}.")  # type: ignore[arg-type]
        elif tyro.conf.Positional not in metadata:
            found.append(f"--{name}")
            if inner is bool:
                head, _, tail = name.rpartition(".")
                found.append(f"--{head}{'.' if head else ''}no-{tail}")
    return found


def parse(kind: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """A dataclass of options from the command line.

    Raises:
        UserError: an unknown flag, with the nearest one, or a value that does not fit.
    """
    known = _flags(kind, default)
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in (*known, "--help"):
            raise UserError(
                f"unknown flag {argument.split('=')[0]}; {nearest(flag, known)}; see `ditlab {command} --help`"
            )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            kwargs: dict[str, Any] = {} if default is None else {"default": default}
            kwargs["config"] = (tyro.conf.AvoidSubcommands,)  # of either network, the default's fields are flags
            return tyro.cli(kind, args=list(arguments), prog=f"ditlab {command}", **kwargs)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # Colours and lines of a box, drawn one way or another, as the terminal can.
        box = re.sub(r"[│╭╮╰╯─]|-{3,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", complaint.getvalue()))
        _, *lines = (line for line in box.splitlines() if line.strip())  # the first is the title
        message = re.split(r" Argument helptext:| For full helptext", " ".join(" ".join(lines).split()))[0]
        raise UserError(f"{message}; see `ditlab {command} --help`") from None
