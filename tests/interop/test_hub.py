"""Models on the hub, whose place is taken by a folder in the layout of its cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ditlab import load
from ditlab.errors import UserError
from ditlab.interop import diffusers_pipeline, hub
from ditlab.pipelines import Pipeline


class Hub:
    """Keeps what is pushed, as the hub's cache on this machine would: ``models--user--name/snapshots/REVISION``."""

    def __init__(self, cache: Path):
        self.cache, self.private = cache, {}

    def folder(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}"

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if repo_id.startswith("stranger/"):
            raise OSError("403 Forbidden: you are not stranger\nask them")
        self.private[repo_id] = private

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        folder = self.folder(repo_id)
        shutil.copytree(folder_path, folder / "snapshots" / "0123abc")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0123abc")

    def snapshot_download(self, repo_id: str, allow_patterns: list[str]) -> str:
        del allow_patterns
        reference = self.folder(repo_id) / "refs" / "main"
        if not reference.exists():
            raise LocalEntryNotFoundError(f"Cannot find {repo_id} and the hub is out of reach.\nTry again.")
        return str(self.folder(repo_id) / "snapshots" / reference.read_text())


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


@pytest.fixture
def run(model: Callable[..., Pipeline], tmp_path: Path) -> Path:
    """A run folder with a model and its pages."""
    folder = tmp_path / "runs" / "birds"
    model().save(folder)
    for name in ("loss.png", "samples/00000640.png", "evaluation/nearest.png", "checkpoints/640/secret.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "report.md").write_text(
        "# birds\n\n![loss](loss.png)\n![samples](samples/00000640.png)\n![gone](gone.png)\n"
    )
    (folder / "evaluation" / "report.md").write_text("# Evaluation\n\nFD 12.5\n\n![nearest](nearest.png)\n")
    return folder


def test_what_is_pushed_is_loaded_by_its_name(ditlab: Callable, stand_in: Hub, run: Path):
    ended = ditlab("push", run, "ann/birds", "--private")
    assert (ended.code, ended.out) == (0, "model: https://huggingface.co/ann/birds\n")
    assert stand_in.private == {"ann/birds": True}
    images = load("ann/birds").sample(["dog"], steps=5, sampler="ddim", count=2)
    assert np.array_equal(images, Pipeline.load(run).sample(["dog"], steps=5, sampler="ddim", count=2))


def test_the_card_is_written_from_the_run(stand_in: Hub, run: Path):
    hub.push(run, "ann/birds")
    uploaded = Path(stand_in.snapshot_download("ann/birds", []))
    assert sorted(str(path.relative_to(uploaded)) for path in uploaded.rglob("*") if path.is_file()) == [
        "README.md", "evaluation/nearest.png", "loss.png", "model.json", "model.safetensors", "samples/00000640.png",
    ]  # fmt: skip
    card = (uploaded / "README.md").read_text()
    for words in (
        "library_name: ditlab", "# birds", 'ditlab.load("ann/birds")', "| classes | 3: cat, dog, wren |", "linear-beta",
        "## Evaluation", "FD 12.5", "(samples/00000640.png)", "(evaluation/nearest.png)",
    ):  # fmt: skip
        assert words in card


def test_a_pipeline_on_the_hub_is_loaded_too(model: Callable[..., Pipeline], stand_in: Hub, tmp_path: Path):
    diffusers_pipeline.export(model(), tmp_path / "out")
    stand_in.create_repo("ann/pipeline", False, True)
    stand_in.upload_folder("ann/pipeline", tmp_path / "out", "by diffusers")
    assert load("ann/pipeline").names == ("cat", "dog", "wren")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda run: hub.push(run, "stranger/birds"), ["stranger/birds", "403 Forbidden", "hf auth login"]),
        (lambda run: hub.push(run / "none", "ann/birds"), ["no model in"]),
        (lambda run: load("ann/nothing"), ["ann/nothing", "out of reach", "USER/NAME"]),
        (lambda run: load(run.parent / "brids"), ["no model in"]),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_is_said_in_one_line(ask: Any, words: list[str], run: Path):
    with pytest.raises(UserError) as caught:
        ask(run)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
