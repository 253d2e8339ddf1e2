"""``ditlab completion``: completion of commands and flags in a shell."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ditlab.cli.flags import known_flags, parse
from ditlab.errors import UserError
from ditlab.runtime.console import log


@dataclass(frozen=True)
class CompletionOptions:
    """Print a completion script for a shell, as in: eval "$(ditlab completion bash)"."""

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh"]], tyro.conf.arg(metavar="SHELL")]
    """bash or zsh."""


def completion(arguments: list[str]) -> None:
    """Print a script that completes commands and flags in bash or zsh."""
    options = parse(CompletionOptions, arguments, "completion")
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs shtab: pip install shtab") from error
    log(shtab.complete(_parser(), options.shell))


def _parser() -> argparse.ArgumentParser:
    """All commands with their flags; of a recipe's flags, those with a DiT."""
    from ditlab.cli import convert, demo, evaluate, inspect, play, sample, study
    from ditlab.cli.main import COMMANDS
    from ditlab.cli.recipe_options import RecipeOptions
    from ditlab.recipes.find import NAMES
    from ditlab.recipes.recipe import Recipe

    kinds = {
        "sample": sample.SampleOptions, "evaluate": evaluate.EvaluateOptions, "study": study.StudyOptions,
        "play": play.PlayOptions, "inspect": inspect.InspectOptions, "import": convert.ImportOptions,
        "export": convert.ExportOptions, "push": convert.PushOptions, "demo": demo.DemoOptions,
    }  # fmt: skip
    flags = {name: known_flags(kind, None) for name, kind in kinds.items()}
    recipe = known_flags(RecipeOptions, RecipeOptions(Recipe()))
    flags |= dict.fromkeys(("train", "autoencoder", "encode"), recipe)
    whole = argparse.ArgumentParser("ditlab")
    commands = whole.add_subparsers()
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        for flag in flags.get(name, ()):  # shtab skips what has no help
            command.add_argument(flag, help=flag)
        words = {"completion": ("bash", "zsh")}.get(name, NAMES if flags.get(name) is recipe else None)
        argument = command.add_argument("words", nargs="*", choices=words, help=name)
        if words is None:
            argument.complete = {"bash": "_shtab_compgen_files", "zsh": "_files"}  # type: ignore[attr-defined]
    return whole
