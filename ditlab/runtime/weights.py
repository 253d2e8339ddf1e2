"""Tensors from files of weights: safetensors, and PyTorch's own files, which are read without running code."""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
from argparse import Namespace
from pathlib import Path, PosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch

from ditlab.errors import UserError

# Objects without code that trainers store next to the weights: their command line, and paths in it (by both of their names).
PLAIN = [Namespace, (PosixPath, "pathlib.PosixPath"), (PosixPath, "pathlib._local.PosixPath")]

# Exceptions that the readers raise for damaged files.
DAMAGED = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error,
    safetensors.SafetensorError,
)  # fmt: skip


def load_tensors(path: Path, content: bytes | None = None) -> Any:
    """The content of a .safetensors file, or of a .pt, .pth or .ckpt file read with ``weights_only=True``.

    ``content`` is its bytes, if they were read already. Raises a UserError if the file cannot be read, is damaged, or has
    Python objects other than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes() if content is None else content)
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path if content is None else io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} is refused: it contains code or objects that loading would run{f' ({named[1]})' if named else ''}, or is "
            "not a file of weights; save the state_dict alone"
        ) from error
    except DAMAGED as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path} cannot be read: it is damaged, cut off or not a file of weights ({reason})") from error


def load_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Load weights into a module of the same architecture; a UserError names the first tensor that differs."""
    check_weights(module.state_dict(), weights, source)
    module.load_state_dict(weights)


def check_weights(
    expected: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], source: Path, what: str = ""
) -> None:
    """Raise a UserError that names the first tensor that differs in name or shape; ``what`` the weights are, if known."""
    known = f"; it is {what}" if what else ""
    for name in [*expected, *weights]:
        if name not in weights or name not in expected:
            where = "lacks" if name not in weights else "has an unknown"
            raise UserError(f"{source} is of another architecture: it {where} tensor {name!r}{known}")
        shape, needed = tuple(weights[name].shape), tuple(expected[name].shape)
        if shape != needed:
            raise UserError(
                f"{source} is of another architecture: {name!r} is {shape} there, {needed} is expected{known}"
            )
