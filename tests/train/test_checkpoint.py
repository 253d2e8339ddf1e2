"""Checkpoints that are whole, damaged, of another architecture, or hostile."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE
from ditlab.train import checkpoint


def make(value: float) -> dict[str, Tensor]:
    return {
        "weights.a": torch.full((3, 5), value),
        "optimiser.a.step": torch.tensor(value),
        "meter.sums": torch.full((10,), value, dtype=torch.float64),
        "weights.empty": torch.zeros(0),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints after 10, 20 and 30 images, full of 1, 2 and 3."""
    for index in (1, 2, 3):
        save(tmp_path / "checkpoints", index * 10, index)
    return tmp_path / "checkpoints"


def save(folder: Path, images: int, value: float) -> None:
    checkpoints = checkpoint.Checkpoints(folder, 3, ALONE, print)
    checkpoints.save(images, make(value), {"step": value})
    checkpoints.wait()
    checkpoints.close()


def load_into(folder: Path, tensors: dict[str, Tensor], log: Callable[[str], None]) -> dict[str, object] | None:
    checkpoints = checkpoint.Checkpoints(folder, 3, ALONE, log)
    state = checkpoints.find()
    if state is not None:
        checkpoints.read(tensors)
    return state


def load(folder: Path) -> tuple[float, dict[str, object] | None, list[str]]:
    """The value all tensors came back with, the state, and what was said."""
    tensors, said = make(-1), []
    state = load_into(folder, tensors, said.append)
    values = {float(value) for tensor in tensors.values() for value in tensor.flatten()}
    assert len(values) == 1
    return values.pop(), state, said


def seal(path: Path) -> None:
    """Make checksums.json consistent with the files, as an attacker would."""
    files = [file for file in path.iterdir() if file.name != "checksums.json"]
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (path / "checksums.json").write_text(json.dumps(sums))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_was_saved_comes_back_in_place(folder: Path):
    assert load(folder) == (3.0, {"step": 3}, [])
    assert [path.name for path in checkpoint.existing(folder)] == ["000000000010", "000000000020", "000000000030"]


def test_where_there_is_none_nothing_is_loaded(tmp_path: Path):
    assert load(tmp_path) == (-1.0, None, [])
    (tmp_path / ".000000000010.xyz.part").mkdir()
    assert load(tmp_path) == (-1.0, None, [])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped byte in the tensors": lambda path: flip_byte(path / "__0_0.distcp"),
    "a flipped byte in the index": lambda path: flip_byte(path / ".metadata"),
    "a changed state": lambda path: (path / "state.json").write_text('{"step": 9}'),
    "half of the tensors": lambda path: (path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes()[:700]),
    "no tensors": lambda path: (path / "__0_0.distcp").unlink(),
    "no index": lambda path: (path / ".metadata").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "no checksums": lambda path: (path / "checksums.json").unlink(),
    "half of the checksums": lambda path: (path / "checksums.json").write_text('{"state.json": "12'),
    "checksums of nothing": lambda path: (path / "checksums.json").write_text("{}"),
    "checksums that are a list": lambda path: (path / "checksums.json").write_text("[]"),
    "an empty folder": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(folder: Path, damage: Callable[[Path], object]):
    damage(folder / "000000000030")
    value, state, said = load(folder)
    assert (value, state) == (2.0, {"step": 2})
    assert len(said) == 1
    assert "000000000030 is damaged" in said[0]
    assert "using the one before" in said[0]
    damage(folder / "000000000020")
    value, state, said = load(folder)
    assert (value, state) == (1.0, {"step": 1})
    assert len(said) == 2


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_where_all_are_damaged_one_line_says_so(folder: Path, damage: Callable[[Path], object]):
    for path in checkpoint.existing(folder):
        damage(path)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert f"every checkpoint in {folder} is damaged" in str(caught.value)
    assert "delete" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update({"weights.a": torch.zeros(4, 5)}), "weights.a is (3, 5), not (4, 5)"),
        (lambda tensors: tensors.update({"weights.b": torch.zeros(1)}), "it lacks weights.b"),
        (lambda tensors: tensors.pop("optimiser.a.step"), "it has an unknown optimiser.a.step"),
    ],
)
def test_another_architecture_is_one_line_that_names_the_tensor_and_changes_nothing(
    folder: Path, change: Callable[[dict[str, Tensor]], object], words: str, tree
):
    tensors, before = make(-1), tree(folder)
    change(tensors)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(UserError, match="is of another architecture") as caught:
        load_into(folder, tensors, print)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert tree(folder) == before


class Evil:
    """Unpickles to a call that leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def evil_module(mark: Path) -> bytes:
    """A pickle that reaches for os.system by name."""
    return f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()


@pytest.mark.parametrize("kind", ["reduce", "system", "dotted"])
def test_an_index_with_code_in_it_is_refused_and_does_not_run(folder: Path, tmp_path: Path, kind: str):
    mark, path = tmp_path / "ran", folder / "000000000030"
    content = {
        "reduce": pickle.dumps(Evil(mark)),
        "system": evil_module(mark),
        # protocol 4 walks dots: Size.__class__ is reached through an allowed name
        "dotted": b"\x80\x04\x8c\x05torch\x8c\x0eSize.__class__\x93.",
    }[kind]
    (path / ".metadata").write_bytes(content)
    seal(path)
    tensors = make(-1)
    with pytest.raises(UserError, match="is refused") as caught:
        load_into(folder, tensors, print)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert all((tensor == -1).all() for tensor in tensors.values())


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04.", b"(S'x'\ntR.", b"h\x07.", b"N."])
def test_an_index_that_is_no_index_is_refused(folder: Path, content: bytes):
    path = folder / "000000000030"
    (path / ".metadata").write_bytes(content)
    seal(path)
    with pytest.raises(UserError, match="is refused"):
        load(folder)


def test_tensors_with_code_in_them_are_refused_and_it_does_not_run(folder: Path, tmp_path: Path):
    mark, path = tmp_path / "ran", folder / "000000000030"
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    size = (path / "__0_0.distcp").stat().st_size
    assert len(buffer.getvalue()) < size
    metadata = dcp.FileSystemReader(path).read_metadata()
    for place in metadata.storage_data.values():  # every tensor is to be read from the payload
        place.offset, place.length = 0, len(buffer.getvalue())
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    (path / "__0_0.distcp").write_bytes(buffer.getvalue().ljust(size, b"\0"))
    seal(path)
    with pytest.raises(UserError, match="is refused") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_ctrl_c_while_a_checkpoint_is_written_is_ctrl_c_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tree
):
    before = tree(folder)

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 40, 4)
    assert tree(folder) == before
    assert not list(folder.glob(".*"))


def test_what_a_killed_process_was_writing_is_cleared_and_the_rest_stands(folder: Path, tree):
    before = tree(folder)
    shutil.copytree(folder / "000000000030", folder / ".000000000040.abc.part")
    (folder / ".file.part").write_text("x")
    files.clear_unfinished(folder)
    assert tree(folder) == before


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path: Path):
    checkpoints = checkpoint.Checkpoints(tmp_path, 3, ALONE, print)
    tensors = {"weights.a": torch.full((512, 512), 1.0)}
    checkpoints.save(10, tensors, {"step": 1})
    tensors["weights.a"].fill_(2.0)  # as training does while the disk is busy
    checkpoints.wait()
    assert checkpoints.find() == {"step": 1}
    checkpoints.read(tensors)
    assert (tensors["weights.a"] == 1).all()
    checkpoints.close()


def test_a_failed_write_is_told_at_the_next_look_and_older_ones_stand(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree
):
    before = tree(folder)
    checkpoints = checkpoint.Checkpoints(folder, 3, ALONE, print)

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    checkpoints.save(40, make(4), {"step": 4})
    with pytest.raises(UserError, match=r"000000000040: No space left on device; make room"):
        checkpoints.wait()
    checkpoints.poll()  # told once
    checkpoints.close()
    assert tree(folder) == before
    assert not list(folder.glob(".*"))


def test_the_average_of_a_checkpoint_is_read_alone(digits_run: Path, tmp_path: Path):
    model = Pipeline.load(digits_run)
    first, last = checkpoint.existing(digits_run / "checkpoints")
    network = copy.deepcopy(model.network)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    checkpoint.load_average(last, network)  # of which the run's model file was made
    torch.testing.assert_close(network.state_dict(), model.network.state_dict(), rtol=0, atol=0)
    checkpoint.load_average(first, network)
    name = "final_layer.linear.weight"
    assert not torch.equal(network.state_dict()[name], model.network.state_dict()[name])


def test_the_average_of_a_damaged_or_another_checkpoint_is_refused(digits_run: Path, tmp_path: Path, refuses: Callable):
    network = Pipeline.load(digits_run).network
    copied = shutil.copytree(digits_run / "checkpoints", tmp_path / "checkpoints")
    (last,) = checkpoint.existing(copied)[-1:]
    refuses(lambda: checkpoint.load_average(last, torch.nn.Linear(2, 2)), "another architecture", "weight")
    (file,) = last.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    refuses(lambda: checkpoint.load_average(last, network), "is damaged", "use another one")


def test_tensors_are_on_the_host_when_they_are_written_and_no_stream_is_synchronised_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """DCP's copy-ahead loader, used unless copy-ahead is 0, synchronises a stream for each tensor."""
    asked, devices = [], set()
    init, save = dcp.FileSystemWriter.__init__, dcp.save

    def note_writer(self: dcp.FileSystemWriter, *arguments: object, **more: object) -> None:
        asked.append(more["per_thread_copy_ahead"])
        init(self, *arguments, **more)  # type: ignore[arg-type]

    def note_tensors(tensors: dict[str, Tensor], **more: object) -> object:
        devices.update(tensor.device.type for tensor in tensors.values())
        return save(tensors, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(dcp.FileSystemWriter, "__init__", note_writer)
    monkeypatch.setattr(dcp, "save", note_tensors)
    save_one = checkpoint.Checkpoints(tmp_path, 3, ALONE, print)
    save_one.save(10, make(1), {"step": 1})
    save_one.close()
    save_one.wait()
    assert asked == [0]
    assert devices == {"cpu"}


class Stream:
    """Stands in for a CUDA stream: counts what is asked of it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.waited, self.synchronised = 0, 0

    def wait_stream(self, other: Stream) -> None:
        self.waited += 1

    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None:
        self.synchronised += 1


def test_a_snapshot_of_a_gpu_synchronises_once_in_the_writer_and_reuses_its_buffers(monkeypatch: pytest.MonkeyPatch):
    current, own = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    empty_like = torch.empty_like
    pinned: list[bool] = []

    def allocate(tensor: Tensor, device: str, pin_memory: bool) -> Tensor:
        pinned.append(pin_memory)
        return empty_like(tensor, device=device)

    monkeypatch.setattr(torch, "empty_like", allocate)
    snapshot = checkpoint.Snapshot(torch.device("cpu"))
    snapshot.stream = own  # type: ignore[assignment]
    tensors = {str(index): torch.full((4,), float(index)) for index in range(574)}  # as many as XL/2 has
    copies: dict[str, Tensor] = {}
    for turn in range(2):
        copies, ready = snapshot(tensors)
        assert own.synchronised == turn  # the training thread waits for nothing
        ready()
    assert own.synchronised == 2
    assert len(pinned) == 574  # and not again for the second checkpoint
    assert all(pinned)
    assert current.waited == own.waited == 2
    assert all(torch.equal(copies[name], tensor) for name, tensor in tensors.items())


def test_what_goes_before_a_checkpoint_is_done_in_the_thread_that_writes_it(tmp_path: Path):
    checkpoints, order = checkpoint.Checkpoints(tmp_path, 3, ALONE, print), []

    def job() -> None:
        order.append((threading.current_thread() is threading.main_thread(), checkpoint.existing(tmp_path)))

    checkpoints.save(10, make(1), {"step": 1}, [None, job])
    checkpoints.wait()
    checkpoints.close()
    assert order == [(False, [])]
    assert len(checkpoint.existing(tmp_path)) == 1
