"""Dataclasses of options from the command line; a mistake is one line."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import tyro
from tyro import _errors

from ditlab.cli.familiar import familiar_flag
from ditlab.errors import UserError, nearest

T = TypeVar("T")
BOOLEANS = ("true", "false", "yes", "no", "on", "off")  # values that other tools' switches take


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
                found.append(_negated(name))
    return found


def parse(kind: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """A dataclass of options from the command line; raises UserError for an unknown flag (naming the right one) or value."""
    see = f"see `ditlab {command} --help`"
    known = known_flags(kind, default)
    # Before tyro, which reports a missing argument first.
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        given, equals, value = argument.partition("=")
        if given.startswith("--") and (flag := given.replace("_", "-")) not in (*known, "--help"):
            raise UserError(f"unknown flag {given}; {familiar_flag(flag, known) or nearest(flag, known)}; {see}")
        if re.fullmatch(r"-[a-zA-Z]\w*", given) and given != "-h":
            raise UserError(f"unknown flag {given}; {nearest(f'-{given}', known)}; {see}")
        value = value if equals else following
        if (equals or value.lower() in BOOLEANS) and (off := _negated(given.replace("_", "-"))) in known:
            raise UserError(f"{given} takes no value ({value!r} given); use {given} or {off}; {see}")

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise UserError(f"{_describe(event)}; {see}")

    # A hook of tyro's own, though not a public one yet: otherwise its errors are only to be read off a drawn box.
    with _errors.on_parse_error(refuse):
        kwargs: dict[str, Any] = {} if default is None else {"default": default}
        config = (tyro.conf.AvoidSubcommands,)  # of two kinds of network, the default's fields are flags
        return tyro.cli(kind, args=list(arguments), prog=f"ditlab {command}", config=config, **kwargs)


def _negated(flag: str) -> str:
    """``--data.no-flip`` of ``--data.flip``."""
    head, _, tail = flag.removeprefix("--").rpartition(".")
    return f"--{head}{'.' if head else ''}no-{tail}"


def _name(argument: Any) -> str:
    return argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[0]


def _wrong_value(metavar: str, message: str) -> str:
    """What is wrong with the value of a number's flag; the parser's message quotes the value."""
    values = re.findall(r"'([^']*)'", message.partition("Got errors")[0]) or [""]
    for value in values:
        try:
            number = float(value)
        except ValueError:
            break
        if "INT" in metavar and not value.lstrip("+-").isdigit():
            near = f"; use {number:.0f}" if math.isfinite(number) and number == int(number) else ""
            return f"{value!r} is not a whole number{near}"
    else:
        return f"must be {metavar}, not {' '.join(values)!r}"
    return f"{value!r} is not a {'whole number' if 'INT' in metavar else 'number'}"


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
            argument = event.argument
            assert argument is not None
            return f"{_name(argument)} {_wrong_value(str(argument.lowered.metavar), event.message)}"
    return "these arguments do not go together"
