"""What a run folder holds: its checkpoints, whether they are whole, and the comparison of two runs bit by bit."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np

from .command import expect

CLOCK = ("images_per_second", "seconds", "memory_gib", "mfu", "mfu_of_tflops")  # metrics that differ from run to run
PARTS = ("", "-autoencoder", "-latents")  # a run folder, and the folders next to it


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders under their final name, oldest first."""
    return sorted((run / "checkpoints").glob("[0-9]*"))


def unfinished(run: Path) -> list[Path]:
    """Checkpoints that are being written, or were when the process was killed."""
    return list((run / "checkpoints").glob(".*[0-9].part"))


def whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there, as it was written."""
    try:
        sums = json.loads((checkpoint / "checksums.json").read_text())
        found = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in sums}
    except (OSError, ValueError):
        return False
    return found == sums and {"state.json", ".metadata"} < set(sums)


def newest(run: Path) -> int | None:
    """Images of the newest whole checkpoint."""
    return max((int(path.name) for path in checkpoints(run) if whole(path)), default=None)


def content(run: Path) -> dict[str, bytes]:
    """All that a finished run consists of, by name: metrics without times, tensors, states, images, model, latents."""
    import torch
    import torch.distributed.checkpoint as dcp

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    found = {}
    metrics = run / "metrics.jsonl"
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        row = {name: value for name, value in json.loads(line).items() if name not in CLOCK}
        found[f"metrics at {row['images']}"] = json.dumps(row).encode()
    for path in checkpoints(run):
        reader = dcp.FileSystemReader(path)
        stored = reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in stored.items()}  # type: ignore[union-attr]
        dcp.load(tensors, storage_reader=reader, no_dist=True)
        for name, tensor in tensors.items():
            found[f"{path.name} {name}"] = tensor.numpy().tobytes()
        state = json.loads((path / "state.json").read_text())
        state.pop("microbatch", None)  # what was found to fit, stored unless it was given
        found[f"{path.name} state"] = json.dumps(state).encode()
    for path in [*run.glob("samples/[0-9]*"), *run.glob("*.safetensors"), *run.glob("*.npy")]:
        found[str(path.relative_to(run))] = path.read_bytes()
    for path in () if run.name.endswith("-latents") else run.rglob("*.part"):
        found[f"left behind: {path.name}"] = b""
    return found


def same(run: Path, unbroken: Path) -> str:
    """Compare two finished runs, with their autoencoders and latents, bit by bit.

    Raises:
        Failed: they differ.
    """
    bits = 0
    for part in PARTS:
        one, other = (content(path.with_name(path.name + part)) for path in (run, unbroken))
        expect(one.keys() == other.keys(), f"only one of them has {sorted(one.keys() ^ other.keys())[:5]}")
        for name, data in one.items():
            expect(len(data) == len(other[name]), f"{name} has another size")
            different = np.frombuffer(data, np.uint8) ^ np.frombuffer(other[name], np.uint8)
            wrong = int(np.unpackbits(different).sum())
            expect(not wrong, f"{name} differs in {wrong} bits")
            bits += 8 * len(data)
    return f"0 of {bits:,} bits differ"


def flip(path: Path, at: int) -> None:
    """Flip one bit of the byte at a position."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def fill(folder: Path, leaving: int) -> Path:
    """Write a file until the disk has only some bytes free; returns the file."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - leaving))
    return ballast
