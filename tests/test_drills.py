"""The failure drills of benchmarks/drills.py, done to real runs; and that what they look with can see."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT, PAGE = ROOT / "benchmarks" / "drills.py", ROOT / "docs" / "reliability.md"

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # which dcp.load is told, and says


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drills", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["drills"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drills = load_script()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, dict]]:
    """How ``python benchmarks/drills.py --quick`` ended, and its rows by name."""
    file = tmp_path_factory.mktemp("drills") / "rows.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(file)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    return ended, {row["drill"]: row for row in json.loads(file.read_text())} if file.exists() else {}


@pytest.mark.parametrize("drill", drills.DRILLS, ids=lambda drill: drill.name)
def test_nothing_is_lost(outcome, drill):
    ended, rows = outcome
    assert drill.name in rows, ended.stderr
    row = rows[drill.name]
    assert row["happened"]
    # Where nobody may mount a disk, some cannot be done, and say so.
    assert row["survived"] is True or (drill.mounts and row["happened"].startswith("not run here")), row["happened"]


def test_the_command_prints_the_table_and_ends_well(outcome):
    ended, rows = outcome
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == drills.markdown([drills.Row(**row) for row in rows.values()])


def test_the_page_holds_the_whole_table_with_every_row_survived():
    table = PAGE.read_text().partition(drills.MARKS[0])[2].partition(drills.MARKS[1])[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]
    assert [(row[0], row[1]) for row in rows] == [(drill.name, drill.done) for drill in drills.DRILLS]
    assert [row[-1] for row in rows] == ["yes"] * len(rows)


@pytest.mark.parametrize("error", [drills.Lost("a checkpoint is gone"), FileNotFoundError(2, "No such file", "x")])
def test_a_drill_that_finds_something_wrong_has_not_survived(error: Exception):
    future: Future[str] = Future()
    future.set_exception(error)
    row = drills.outcome(drills.DRILLS[0], future)
    assert row.survived is False
    assert str(error) in row.happened
    assert drills.markdown([row]).endswith("| NO |")


def test_a_drill_that_cannot_be_done_here_says_so():
    row = drills.outcome(drills.DRILLS[2], None)
    assert row.survived is None
    assert row.happened.startswith("not run here")
    assert drills.markdown([row]).endswith("| - |")


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    """A finished run, to be harmed."""
    return Path(shutil.copytree(digits_run, tmp_path / "copy"))


def test_a_run_and_its_copy_are_the_same_to_the_bit(digits_run: Path, copy: Path):
    bits = 8 * sum(map(len, drills.content(digits_run).values()))
    assert drills.same(copy, digits_run) == f"0 of {bits:,} bits differ"
    kinds = {name.split()[-1].split(".")[0] for name in drills.content(copy) if name.startswith("0")}
    assert kinds == {"weights", "average", "optimiser", "state"}


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def harm(run: Path) -> None:
        (path,) = run.glob(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return harm


def one_moment(run: Path) -> None:
    """The last bit of one moment, in a checkpoint written anew."""
    import torch
    import torch.distributed.checkpoint as dcp

    path = run / "checkpoints" / "000000000640"
    reader = dcp.FileSystemReader(path)
    stored = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in stored.items()}  # type: ignore[union-attr]
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    moment = next(tensor for name, tensor in tensors.items() if name.startswith("optimiser") and tensor.dim() == 2)
    moment.view(torch.int32)[0, 0] ^= 1
    state = (path / "state.json").read_bytes()
    shutil.rmtree(path)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    (path / "state.json").write_bytes(state)


@pytest.mark.parametrize(
    "harm",
    [
        one_moment,
        edit("metrics.jsonl", '"skipped": 0', '"skipped": 1'),
        edit("checkpoints/*320/state.json", '"step": 10', '"step": 11'),
        lambda run: drills.flip(run / "model.safetensors", 9000),
        lambda run: drills.flip(next(run.glob("samples/*.png")), 100),
        lambda run: shutil.rmtree(run / "checkpoints" / "000000000320"),
        lambda run: (run / "samples" / ".1.png.part").touch(),
    ],
    ids=["one bit of a tensor", "a row", "a state", "the model", "a picture", "a checkpoint gone", "left behind"],
)
def test_two_runs_that_differ_in_anything_are_not_the_same(digits_run: Path, copy: Path, harm: Callable[[Path], None]):
    harm(copy)
    with pytest.raises(drills.Lost, match=r"differs in [1-9]|only one of them has"):
        drills.same(copy, digits_run)


@pytest.mark.parametrize("name", ["__0_0.distcp", "state.json", ".metadata", "checksums.json"])
def test_a_flipped_bit_or_a_missing_file_makes_a_checkpoint_one_that_is_not_whole(copy: Path, name: str):
    newest = copy / "checkpoints" / "000000000640"
    assert drills.newest(copy) == 640
    drills.flip(newest / name, (newest / name).stat().st_size // 2)
    assert not drills.whole(newest)
    (newest / name).unlink()
    assert not drills.whole(newest)
    assert drills.newest(copy) == 320
