"""One failure drill of benchmarks/drills.py on a real run, and that its comparison notices every difference.

The other drills take minutes: ``make drills``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import drills
import pytest
from reliability import contents
from reliability.command import Failed

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # a warning of dcp.load


def test_a_run_killed_damaged_and_out_of_disk_space_ends_as_an_undisturbed_one(tmp_path: Path):
    command = [sys.executable, drills.__file__, "--quick", "--only", "every failure", "--json", tmp_path / "rows.json"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["survived"] is True
    assert "killed 3 times, a damaged checkpoint skipped" in row["happened"]
    assert ended.stdout.strip() == drills.markdown([drills.Row(**row)])


def test_the_page_contains_the_whole_table_with_every_row_survived():
    table = PAGE.read_text().partition(drills.MARKS[0])[2].partition(drills.MARKS[1])[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]
    assert [(row[0], row[1]) for row in rows] == [(drill.name, drill.done) for drill in drills.DRILLS]
    assert [row[-1] for row in rows] == ["yes"] * len(rows)


@pytest.mark.parametrize("error", [Failed("a checkpoint is gone"), FileNotFoundError(2, "No such file", "x")])
def test_a_drill_that_raises_has_not_survived(error: Exception):
    future: Future[str] = Future()
    future.set_exception(error)
    row = drills.outcome(drills.DRILLS[0], future)
    assert row.survived is False
    assert str(error) in row.happened
    assert drills.markdown([row]).endswith("| NO |")


def test_a_drill_that_cannot_run_here_is_reported():
    row = drills.outcome(drills.DRILLS[4], None)
    assert row.survived is None
    assert row.happened.startswith("not run here")
    assert drills.markdown([row]).endswith("| - |")


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    """A finished run, to be damaged."""
    return Path(shutil.copytree(digits_run, tmp_path / "copy"))


def test_a_run_and_its_copy_are_the_same_to_the_bit(digits_run: Path, copy: Path):
    bits = 8 * sum(map(len, contents.content(digits_run).values()))
    assert contents.same(copy, digits_run) == f"0 of {bits:,} bits differ"
    kinds = {name.split()[-1].split(".")[0] for name in contents.content(copy) if name.startswith("0")}
    assert kinds == {"weights", "average", "optimiser", "state"}


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (path,) = run.glob(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def one_moment(run: Path) -> None:
    """Change the last bit of one moment and write the checkpoint again."""
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
    "change",
    [
        one_moment,
        edit("metrics.jsonl", '"skipped": 0', '"skipped": 1'),
        edit("checkpoints/*320/state.json", '"step": 10', '"step": 11'),
        lambda run: contents.flip(run / "model.safetensors", 9000),
        lambda run: contents.flip(next(run.glob("samples/*.png")), 100),
        lambda run: shutil.rmtree(run / "checkpoints" / "000000000320"),
        lambda run: (run / "samples" / ".1.png.part").touch(),
    ],
    ids=["one bit of a tensor", "metrics", "state", "model", "sample image", "checkpoint missing", "unfinished file"],
)
def test_every_difference_between_two_runs_is_noticed(digits_run: Path, copy: Path, change: Callable[[Path], None]):
    change(copy)
    with pytest.raises(Failed, match=r"differs in [1-9]|only one of them has"):
        contents.same(copy, digits_run)


@pytest.mark.parametrize("change", ["flip", "delete"])
def test_autoencoder_and_latents_next_to_a_run_are_compared(kl_run: Path, tmp_path: Path, change: str):
    folder = Path(shutil.copytree(kl_run.parent, tmp_path / "copy")) / "small"
    (shard,) = folder.with_name("small-latents").glob("*.moments.npy")
    if change == "flip":
        contents.flip(shard, shard.stat().st_size - 1)
    else:
        shutil.rmtree(folder.with_name("small-autoencoder"))
    with pytest.raises(Failed, match=r"differs in 1 bits|only one of them has"):
        contents.same(folder, kl_run)


@pytest.mark.parametrize("name", ["__0_0.distcp", "state.json", ".metadata", "checksums.json"])
def test_a_checkpoint_with_a_flipped_bit_or_a_missing_file_is_not_whole(copy: Path, name: str):
    newest = copy / "checkpoints" / "000000000640"
    assert contents.newest(copy) == 640
    contents.flip(newest / name, (newest / name).stat().st_size // 2)
    assert not contents.whole(newest)
    (newest / name).unlink()
    assert not contents.whole(newest)
    assert contents.newest(copy) == 320
