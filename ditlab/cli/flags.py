"""Dataclasses of options from the command line; a mistake is one line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from tyro import _errors

from ditlab.cli.familiar import familiar_flag
from ditlab.errors import UserError, nearest

T = TypeVar("T")


def known_flags(kind: type, default: object, prefix: str = "") -> list[str]:
    """Every flag of a dataclass of options, without ``--help``; of a union of dataclasses, those of its default.

    tyro gives no such list: its ``get_parser`` is deprecated.
    """
    found, types = [], typing.get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint = types[item.name]
        metadata = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if metadata else hint
        name = f"{prefix}{item.name.replace('_', '-')}"
        value = getattr(default, item.name, None)
        inner = type(value) if dataclasses.is_dataclass(value) else inner
        if dataclasses.is_dataclass(inner):
            found += known_flags(inner, value, prefix if metadata else f"{name}.")  # type: ignore[arg-type]
        elif tyro.conf.Positional not in metadata:
            found.append(f"--{name}")
            if inner is bool:
                head, _, tail = name.rpartition(".")
                found.append(f"--{head}{'.' if head else ''}no-{tail}")
    return found


def parse(kind: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """A dataclass of options from the command line; raises UserError for an unknown flag (naming the right one) or value."""
    see = f"see `ditlab {command} --help`"
    known = known_flags(kind, default)
    for argument in arguments:  # before tyro, which reports a missing argument first
        given = argument.split("=")[0]
        if given.startswith("--") and (flag := given.replace("_", "-")) not in (*known, "--help"):
            raise UserError(f"unknown flag {given}; {familiar_flag(flag, known) or nearest(flag, known)}; {see}")

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise UserError(f"{_describe(event)}; {see}")

    # A hook of tyro's own, though not a public one yet: otherwise its errors are only to be read off a drawn box.
    with _errors.on_parse_error(refuse):
        kwargs: dict[str, Any] = {} if default is None else {"default": default}
        config = (tyro.conf.AvoidSubcommands,)  # of two kinds of network, the default's fields are flags
        return tyro.cli(kind, args=list(arguments), prog=f"ditlab {command}", config=config, **kwargs)


def _name(argument: Any) -> str:
    return argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[0]


def _describe(event: _errors.ParseErrorEvent) -> str:
    """What was wrong with the arguments, on one line."""
    match event:
        case _errors.MissingArgs():
            return f"missing {' and '.join(_name(missing.arg) for missing in event.missing_arguments)}"
        case _errors.UnrecognizedArgs():
            return f"unexpected argument {event.tokens[0]!r}"
        case _errors.InvalidChoice():
            choices = [choice for choice in event.choices if choice != "None"]
            return f"{_name(event.argument)} {event.value!r} is not a choice; {nearest(event.value, choices)}"
        case _errors.BadValue():
            return f"missing value of {_name(event.argument)}"
        case _errors.InstantiationFailure(argument=None):
            return event.message
        case _errors.InstantiationFailure():
            return f"{_name(event.argument)} must be {event.argument.lowered.metavar} ({event.message})"  # type: ignore[union-attr]
    return "these arguments do not go together"
