"""The Python API: training on what Python has, callbacks, threads, measurements, and nothing printed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ditlab
from ditlab.errors import UserError
from ditlab.recipes import Recipe, api
from ditlab.recipes.autoconfigure import CPU_MODEL
from ditlab.train import read_metrics

RANDOM = np.random.default_rng(0)
PIXELS, LABELS = RANDOM.integers(0, 256, (48, 8, 8, 3), np.uint8), np.arange(48) % 3


def tiny(**changes: Any) -> Recipe:
    train = {"steps": 6, "batch": 8, "log": 16, "checkpoint": 24, "samples": 24, **changes.pop("train", {})}
    return ditlab.recipe(
        "digits", depth=1, width=16, heads=2, train=train, sample={"steps": 2}, sample_images=4, **changes
    )


class Recorder(ditlab.Callback):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[dict] = []
        self.ends: list[bool] = []

    def on_step(self, event: Any) -> None:
        self.steps.append(event.images)
        assert event.total == 48

    def on_metrics(self, event: Any, row: dict) -> None:
        self.rows.append(row)

    def on_end(self, event: Any) -> None:
        self.ends.append(event.last)
        assert (event.folder / "model.safetensors").exists()


def test_importing_ditlab_imports_no_other_package_and_names_are_real():
    script = "import sys, ditlab; print(ditlab.__version__, {'torch', 'numpy', 'rich'} & set(sys.modules), dir(ditlab))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert f"{ditlab.__version__} set()" in out
    for name in ditlab.__all__:
        assert getattr(ditlab, name) is not None
        assert repr(name) in out
    with pytest.raises(AttributeError, match="'trian'"):
        ditlab.trian  # type: ignore[attr-defined]  # noqa: B018


def test_two_packages_are_called_as_functions_and_stay_packages():
    for name in ("train", "evaluate"):
        package = getattr(ditlab, name)
        assert package is sys.modules[f"ditlab.{name}"]
        assert inspect.signature(package) == inspect.signature(getattr(api, name))
        assert package.__path__
    from ditlab.train.loop import train as loop

    assert loop.__module__ == "ditlab.train.loop"


def test_training_on_arrays_prints_nothing_and_resumes_with_the_same_images_only(
    tmp_path: Path, capfd: pytest.CaptureFixture
):
    recorder, lines = Recorder(), []
    model = ditlab.train(tiny(), tmp_path / "run", data=(PIXELS, LABELS), callbacks=[recorder])
    assert capfd.readouterr() == ("", "")
    assert (model.pixels, model.names, model.path) == ((3, 8, 8), ("0", "1", "2"), tmp_path / "run")
    assert recorder.steps == [8, 16, 24, 32, 40, 48]
    assert recorder.rows == read_metrics(tmp_path / "run")
    assert recorder.rows[-1]["held_out_loss"]
    assert recorder.ends == [True]
    assert ditlab.recipe(tmp_path / "run").data.source == "given"

    longer = tiny(train={"steps": 6})
    again = ditlab.train(longer, tmp_path / "run", data=(PIXELS, LABELS), callbacks=[recorder], log=lines.append)
    np.testing.assert_array_equal(again.sample(count=3), model.sample(count=3))
    assert "resumed from the checkpoint at 48 of 48 images" in lines
    assert recorder.steps == [8, 16, 24, 32, 40, 48]
    with pytest.raises(UserError, match="given in Python and are not stored"):
        ditlab.train(tmp_path / "run", tmp_path / "run")
    with pytest.raises(UserError, match=r"are not those that .* was trained on"):
        ditlab.train(longer, tmp_path / "run", data=(PIXELS, LABELS[::-1]))


def test_a_data_set_trains_in_a_thread_as_its_arrays_do(tmp_path: Path):
    items = list(zip(PIXELS, LABELS, strict=True))
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(ditlab.train, tiny(), tmp_path / str(index), data=data)
            for index, data in enumerate((items, (PIXELS, LABELS)))
        ]
        one, other = (run.result() for run in runs)
    np.testing.assert_array_equal(one.sample(count=3), other.sample(count=3))


def test_images_of_another_size_than_the_network_takes_are_said_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UserError, match="not divisible"):
        ditlab.train(tiny(), tmp_path / "run", data=PIXELS[:, :7])
    with pytest.raises(UserError, match="captions are given without images"):
        ditlab.train("digits", tmp_path / "run", captions=["one"])
    with pytest.raises(UserError, match="1 captions for"):
        ditlab.train("digits", tmp_path / "run", data=np.zeros((4, 8, 8), np.uint8), captions=["one"])
    with pytest.raises(UserError, match=r"no ditlab.Callback"):
        ditlab.train(tiny(), tmp_path / "run", data=PIXELS, callbacks=[print])  # type: ignore[list-item]
    with pytest.raises(UserError, match="device 'gpu'"):
        ditlab.train(tiny(), tmp_path / "run", data=PIXELS, device="gpu")
    assert not (tmp_path / "run").exists()


def test_latents_of_given_images_are_encoded_and_resumed_without_the_images(tmp_path: Path):
    autoencoder = {"kind": "kl", "latent_channels": 2, "widths": (8, 8)}
    recipe = tiny(
        autoencoder=autoencoder,
        autoencoder_train={"images": 16, "batch": 8, "log": 16, "samples": 16, "checkpoint": 16},
    )
    model = ditlab.train(recipe, tmp_path / "run", data=PIXELS)
    assert model.encode(PIXELS[:2]).shape == (2, 2, 4, 4)
    again = ditlab.train(tmp_path / "run", tmp_path / "run")
    np.testing.assert_array_equal(again.sample(count=2), model.sample(count=2))


def test_a_model_is_measured_against_its_data_or_against_arrays(tmp_path: Path, digits_run: Path, capfd):
    lines: list[str] = []
    model = ditlab.load(digits_run)
    kept = model.sample(count=8, seed=2, sampler="euler", steps=2)
    result = ditlab.evaluate(model, count=40, data=kept, out=tmp_path, sampler="euler", steps=2, log=lines.append)
    assert result.numbers
    assert "euler, 2 steps" in result.how["sampler"]
    assert np.load(tmp_path / "real.npz")["arr_0"].shape == (8, 8, 8, 1)
    assert (tmp_path / "report.md").exists()
    assert capfd.readouterr() == ("", "")
    assert any(line.startswith("real images") for line in lines)
    assert str(result).startswith("40 of ")
    assert result._repr_html_().count("<tr>") == len(result.numbers) + 1
    model.path = None
    with pytest.raises(UserError, match="save it first"):
        ditlab.evaluate(model)


def test_the_folder_recipe_is_fitted_to_a_cpu_as_by_the_command_line(tmp_path):
    class Stop(ditlab.Callback):
        def on_step(self, event) -> None:
            raise KeyboardInterrupt

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ditlab.train("folder", out=tmp_path / "run", data=PIXELS, callbacks=[Stop()], log=lines.append, device="cpu")
    assert any("--model.depth" in line for line in lines)
    assert any(line.startswith("estimated time: ") and "chosen for this machine" in line for line in lines)
    chosen = vars(ditlab.recipe(tmp_path / "run").model)
    assert {name: chosen[name] for name in CPU_MODEL} == CPU_MODEL
