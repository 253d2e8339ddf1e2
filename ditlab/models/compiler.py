"""Whether networks can be compiled on this machine."""

from __future__ import annotations

import os
import shutil

import torch

from ditlab.errors import UserError


def check_compiler(device: torch.device, without: str) -> None:
    """Look for the compiler that torch.compile calls: of C++ for a CPU, of C for a GPU, whose kernels Triton starts with it.

    Args:
        device: where the network is to run.
        without: the flag that does without, for the message.

    Raises:
        UserError: there is none.
    """
    variable, known = ("CXX", ("g++", "clang++")) if device.type == "cpu" else ("CC", ("gcc", "clang", "cc"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, known[0]), *known)):
        names = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UserError(f"torch.compile needs a compiler, and there is no {names} on this machine; use {without}")
