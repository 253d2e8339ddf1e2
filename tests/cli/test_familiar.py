"""Flags of other tools, and ditlab's old ones, are answered with the flag to use here."""

from __future__ import annotations

import pytest

from ditlab.cli.convert import ExportOptions, ImportOptions, PushOptions
from ditlab.cli.demo import DemoOptions
from ditlab.cli.evaluate import EvaluateOptions
from ditlab.cli.familiar import FAMILIAR, familiar_flag
from ditlab.cli.flags import known_flags
from ditlab.cli.inspect import InspectOptions
from ditlab.cli.play import PlayOptions
from ditlab.cli.recipe_options import RecipeOptions
from ditlab.cli.sample import SampleOptions
from ditlab.cli.study import StudyOptions
from ditlab.recipes import Recipe

OPTIONS = (
    SampleOptions, EvaluateOptions, InspectOptions, StudyOptions, PlayOptions, DemoOptions, ImportOptions, ExportOptions,
    PushOptions,
)  # fmt: skip
KNOWN = [known_flags(RecipeOptions, RecipeOptions(Recipe())), *(known_flags(options, None) for options in OPTIONS)]


@pytest.mark.parametrize("flag", FAMILIAR)
def test_every_hint_names_a_flag_that_exists_and_some_command_gives_it(flag: str):
    for hint in FAMILIAR[flag]:
        if hint.startswith("--"):
            assert any(hint.split()[0] in known for known in KNOWN), hint
    answers = [familiar_flag(flag, known) for known in KNOWN if flag not in known]
    assert any(answers)
    assert all("\n" not in answer for answer in answers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits", "--lr", "1e-3"], "use --train.lr;"),
        (["train", "digits", "--batch-size=64"], "use --train.batch;"),
        (["train", "digits", "--epochs", "3"], "use --train.images (images in total"),
        (["train", "digits", "--gpu", "1"], "use --device;"),
        (["train", "digits", "--cfg-scale", "2"], "use --sample.guidance.scale;"),
        (["train", "digits", "--output_dir", "x"], "use --out;"),
        (["train", "digits", "--num-gpus", "8"], "torchrun"),
        (["sample", "--num-images", "4"], "use --count;"),
        (["sample", "x", "--batch-size", "4"], "use --batch;"),
        (["evaluate", "x", "--num-inference-steps", "4"], "use --steps;"),
        (["inspect", "x", "--resolution", "64"], "use --image;"),
        (["inspect", "x", "--num-gpus", "8"], "use --gpus;"),
        (["study", "scaling", "--workers", "2"], "use --jobs;"),
        (["train", "digits", "--train.rate", "1e-3"], "use --train.lr;"),
        (["train", "digits", "--train.clip", "1"], "use --train.max-grad-norm;"),
        (["train", "digits", "--train.keep", "1"], "use --train.keep-checkpoints;"),
        (["train", "digits", "--train.part", "1"], "use --train.microbatch;"),
        (["train", "digits", "--train.recompute"], "use --train.activation-checkpointing;"),
        (["autoencoder", "fashion", "--autoencoder-train.rate", "1"], "use --autoencoder-train.lr;"),
        (["inspect", "x", "--part", "1"], "use --microbatch;"),
        (["inspect", "x", "--recompute"], "use --activation-checkpointing;"),
    ],
)
def test_a_familiar_flag_is_one_line_with_the_flag_to_use(arguments: list[str], words: str, refused, elsewhere):
    flag = next(argument for argument in arguments if argument.startswith("--")).split("=")[0]
    refused(arguments, f"unknown flag {flag}; ", words)


def test_a_familiar_flag_without_its_like_in_a_command_gets_the_nearest_flag(refused):
    refused(["sample", "x", "--epochs", "3"], "unknown flag --epochs; did you mean '--steps'?")
