"""Trained models that come with the package, in half precision: ``ditlab.load("fashion")`` works right after install."""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("fashion",)
FOLDER = Path(__file__).parent / "shipped"
MOST = 10 * 2**20  # bytes a model may take, its autoencoder included


def locate(path: str | Path) -> Path:
    """Where a model is: in the package where its name is a shipped one and nothing of that name lies here, else as given."""
    if str(path) in SHIPPED and not Path(path).exists():
        return FOLDER / str(path)
    return Path(path)


def models_near(path: Path) -> list[str]:
    """Names to suggest in place of ``path``: the shipped models, then those next to it."""
    return [*SHIPPED, *sorted(str(found.parent) for found in path.parent.glob("*/model.json"))]
