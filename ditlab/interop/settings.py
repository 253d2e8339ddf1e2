"""What the tensors of a checkpoint do not tell: heads, classes, and the process it was trained for.

Each comes from the user's choice, the settings that the trainer stored, or a guess, which is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ditlab.diffusion import DiffusionConfig
from ditlab.errors import UserError
from ditlab.models import SIZES

Process = Literal["auto", "dit", "sit", "repa"]
Settings = Mapping[str, object]
HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads", "nheads")
CLASSES = ("num_classes", "n_classes", "class_num", "classes")
MODELS = ("model", "model_type", "model_name", "arch")
NAME = re.compile(r"(\w*iT)-(S|B|L|XL)/(\d+)", re.IGNORECASE)
FLOWS = {"velocity": "sit", "v": "repa"}  # what SiT's and REPA's settings call the prediction


@dataclass(frozen=True)
class Choices:
    """What the user says of a checkpoint; 0 and auto: as the checkpoint says."""

    heads: int = 0
    classes: int = 0
    process: Process = "auto"


def heads_of(width: int, settings: Settings, head_width: int, chosen: int) -> tuple[int, str]:
    """Number of attention heads of a network of ``width``, and where it is from; ``head_width`` is 0 where no tensor has it."""
    if chosen:
        return chosen, ""
    if head_width:
        return max(1, width // head_width), ""
    if found := _whole_number(settings, HEADS):
        return found, f"heads: {found}, from the settings in the file"
    model = NAME.search(_text(settings, MODELS))
    for size, (_, paper, heads) in SIZES.items():
        if paper == width and (model is None or model[2].upper() == size):
            return heads, f"heads: {heads}, as {model[0] if model else f'the paper has for width {width}'}"
    heads = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(width / n - 64), n))
    return heads, (
        f"heads: {heads}, guessed ({width // heads} channels each); the file does not say, and with another number than in "
        "training samples are noise: give --heads"
    )


def classes_of(rows: int, settings: Settings, chosen: int, path: Path) -> tuple[int, bool, str]:
    """Classes of a label table of so many rows, whether one more row is the null class, and where that is from.

    UserError: neither is possible for the number that was given.
    """
    given = chosen or _whole_number(settings, CLASSES)
    if given:
        if rows not in (given, given + 1):
            source = "--classes" if chosen else "the settings in the file"
            raise UserError(
                f"{path}: {source} has {given} classes, the label table {rows} rows; give --classes {rows} (no null class) or "
                f"{rows - 1} (the last row is the null class)"
            )
        null = "" if rows > given else " and no null class (condition dropout 0), so no guidance"
        return given, rows > given, f"classes: {given}{null}"
    if rows == 1:
        return 0, True, "classes: none"
    if rows % 1000 == 0 or _number(settings, "class_dropout_prob") == 0:
        return (
            rows,
            False,
            f"classes: {rows} and no null class, as the label table has {rows} rows (else --classes {rows - 1})",
        )
    return (
        rows - 1,
        True,
        f"classes: {rows - 1} and a null class, for {rows} rows (without a null class: --classes {rows})",
    )


def process_of(path: Path, settings: Settings, marks: str, chosen: Process) -> tuple[Process, str]:
    """The process that a network was trained for, and where that is from.

    ``marks`` is the process that the tensors' names imply, or empty. UserError: ditlab does not have it.
    """
    if chosen != "auto":
        return chosen, ""
    kind, prediction = str(settings.get("path_type") or ""), str(settings.get("prediction") or "velocity")
    if kind:
        if kind.lower() != "linear" or prediction not in FLOWS:
            raise UserError(
                f"{path} was trained on the path {kind} to predict {prediction}; ditlab reads the linear path with velocity"
            )
        found: Process = FLOWS[prediction]  # type: ignore[assignment]
        return found, f"process: {DESCRIBED[found]}, as the settings in the file say"
    if marks:
        return marks, f"process: {DESCRIBED[marks]}, as the names of the tensors say"  # type: ignore[return-value]
    model = NAME.search(_text(settings, MODELS))
    kinds = {"sit": "sit", "lightningdit": "sit", "dit": "dit"}
    if model and model[1].lower() in kinds:
        found = kinds[model[1].lower()]  # type: ignore[assignment]
        return found, f"process: {DESCRIBED[found]}, as the model is a {model[0]}"
    if match := re.search(r"(?<![a-z])(sit|repa|lightningdit)(?![a-z])", path.name.lower()):
        found = "repa" if match[1] == "repa" else "sit"
        return found, f"process: {DESCRIBED[found]}, from the file's name; else --process dit"
    return "dit", f"process: {DESCRIBED['dit']}, assumed, as the file does not say; for SiT give --process sit"


DESCRIBED = {
    "dit": "DiT's (1000 steps of linear beta, epsilon)",
    "sit": "SiT's (rectified flow, velocity, network time 0 to 1, data at 1)",
    "repa": "REPA's (rectified flow, velocity, network time 0 to 1, data at 0)",
}


def diffusion_of(process: Process, learned_variance: bool, null: bool) -> DiffusionConfig:
    """The process as ditlab has it, once the weights have absorbed the direction of time."""
    dropout = 0.1 if null else 0.0
    if process == "dit":
        return DiffusionConfig(learned_variance=learned_variance, condition_dropout=dropout)
    return DiffusionConfig(
        "rectified-flow", "velocity", learned_variance=False, condition_dropout=dropout, time_scale=1.0
    )


def flag(settings: Settings, name: str) -> bool:
    """Whether a setting is on."""
    return settings.get(name) is True


def _text(settings: Settings, names: tuple[str, ...]) -> str:
    return " ".join(str(settings[name]) for name in names if isinstance(settings.get(name), str))


def _number(settings: Settings, name: str) -> float | None:
    value = settings.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole_number(settings: Settings, names: tuple[str, ...]) -> int:
    return next((int(value) for name in names if (value := _number(settings, name)) and value >= 1), 0)
