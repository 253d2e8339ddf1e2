"""A machine without a compiler is told so before anything is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ditlab.errors import UserError
from ditlab.runtime.device import check_compiler


@pytest.mark.parametrize(("device", "names"), [("cpu", r"g\+\+ or clang\+\+"), ("cuda", "gcc, clang or cc")])
def test_no_compiler_is_one_line(device: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match=f"there is no {names} on this machine; use --train.compile off"):
        check_compiler(torch.device(device), "--train.compile off")
    own = tmp_path / "mine"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX" if device == "cpu" else "CC", "mine")
    check_compiler(torch.device(device), "--train.compile off")
