import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ditlab.runtime.weights import load_tensors, load_weights


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth"])
def test_tensors_are_read_from_a_path_or_from_its_bytes(tmp_path: Path, name: str):
    path, tensors = tmp_path / name, {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(tensors, path)  # pyright: ignore
    for loaded in (load_tensors(path), load_tensors(path, path.read_bytes())):
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_a_training_checkpoint_with_its_command_line_is_read(tmp_path: Path):
    torch.save({"ema": {"a": torch.ones(1)}, "args": Namespace(model="DiT-XL/2")}, tmp_path / "c.pt")
    assert load_tensors(tmp_path / "c.pt")["ema"]["a"].item() == 1


class Code:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


def test_code_is_refused_and_not_run(tmp_path: Path, refuses: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": Code()}))
    for name in ("new.pt", "old.pt"):
        refuses(lambda name=name: load_tensors(tmp_path / name), name, "refused", "code or objects")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_damaged_file_is_one_line(tmp_path: Path, refuses: Callable, name: str):
    path = tmp_path / name
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)({"a": torch.ones(9)}, path)  # pyright: ignore
    path.write_bytes(path.read_bytes()[:-40])
    refuses(lambda: load_tensors(path), name, "cannot be read", "cut off")
    refuses(lambda: load_tensors(tmp_path / f"no-{name}"), f"no-{name}", "cannot be read")


def test_weights_of_another_architecture_name_the_first_tensor_that_differs(tmp_path: Path, refuses: Callable):
    module, path = torch.nn.Linear(2, 3), tmp_path / "w.pt"
    load_weights(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, path)
    assert module.weight.sum() == 6
    good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    refuses(lambda: load_weights(module, {"weight": good["weight"]}, path), "lacks tensor 'bias'")
    refuses(lambda: load_weights(module, {**good, "scale": torch.ones(1)}, path), "unknown tensor 'scale'")
    refuses(lambda: load_weights(module, {**good, "bias": torch.ones(4)}, path), "'bias' is (4,) there", "(3,)")
