import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditlab.errors import UserError
from ditlab.runtime import files


def test_a_file_is_written_with_its_folder_and_replaces_what_stood_there(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    files.write_file(path, "one")
    files.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["b.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    temporary = files.begin_folder(path)
    with files.finishing_folder(temporary, path):
        yield temporary


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_where_writing_fails_the_old_file_stands_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
):
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(UserError, match=r"b\.txt: No space left on device"):
        files.write_file(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["b.txt"]


def test_a_place_that_is_a_file_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        files.write_file(tmp_path / "file" / "below", "x")
    with pytest.raises(UserError, match="cannot write"), new_folder(tmp_path / "file" / "below"):
        pass


def test_a_folder_is_invisible_until_it_is_whole(tmp_path: Path):
    path = tmp_path / "new"
    with new_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text("x")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert (path / "deep" / "file").read_text() == "x"
    assert [item.name for item in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_whose_writer_raises_leaves_nothing_and_the_old_one_stands(tmp_path: Path, error: BaseException):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "kept").write_text("old")

    def write() -> None:
        with new_folder(path) as temporary:
            (temporary / "half").write_text("x")
            raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        write()
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]
    assert (path / "kept").read_text() == "old"


def test_a_folder_already_there_is_replaced_as_a_whole(tmp_path: Path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with new_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert [item.name for item in path.iterdir()] == ["new"]


HOLD = """
import sys
from pathlib import Path
from ditlab.runtime import files
with files.locked(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_freed_when_it_is_killed(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(files.__file__).parent.parent.parent,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    assert files.is_locked(tmp_path)
    with pytest.raises(UserError, match="another process is at work on the run"), files.locked(tmp_path, "the run"):
        pass
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with files.locked(tmp_path, "the run"):
        pass


def test_a_folder_is_held_once_in_one_process_too(tmp_path: Path):
    with (
        files.locked(tmp_path / "new", "the run"),
        pytest.raises(UserError, match="another process"),
        files.locked(tmp_path / "new", "the run"),
    ):
        pass
