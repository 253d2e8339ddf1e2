"""Files of an evaluation: a line of JSON, a page, a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ditlab.evaluate.evaluator import Neighbours
from ditlab.evaluate.measure import Number
from ditlab.evaluate.page import Evaluation, append_result, read_results, write_neighbours

FIRST = Evaluation(
    {
        "FD-EffNetLite0@64": Number(12.345, 0.25),
        "KD-EffNetLite0@64": Number(1e-4, 2e-5),
        "precision": Number(0.71, 0.01),
        "recall": Number(0.5),
        "closer than held out, pixels": Number(0.498),
        "copies, pixels": Number(0.011),
    },
    {"FD-EffNetLite0@64": Number(1.5), "closer than held out, pixels": Number(0.5)},
    {"samples": "10,000 of runs/x, seed 0", "decoder": "pixels, factor 1", "nearest": "nearest-1.png"},
)
SECOND = Evaluation({"FID": Number(3.25), "Inception score": Number(100, 2)}, {}, {"samples": "5 images of y.npz"})


def test_evaluations_are_read_as_written(tmp_path: Path):
    assert read_results(tmp_path / "nowhere") == []
    for evaluation in (FIRST, SECOND):
        append_result(tmp_path / "out", evaluation)
    assert read_results(tmp_path / "out") == [FIRST, SECOND]
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["numbers"]["FD-EffNetLite0@64"] == {"value": 12.345, "spread": 0.25}


def test_a_second_evaluation_is_appended_and_both_are_on_the_page(tmp_path: Path):
    append_result(tmp_path, FIRST)
    before = (tmp_path / "results.jsonl").read_text()
    append_result(tmp_path, SECOND)
    assert (tmp_path / "results.jsonl").read_text().startswith(before)
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# Evaluation\n")
    assert page.index("## 5 images of y.npz") < page.index("## 10,000 of runs/x, seed 0")
    for line in (
        "| FD-EffNetLite0@64 ↓ | 12.35 ± 0.25 | 1.5 |",
        "| KD-EffNetLite0@64 ↓ | 0.0001 ± 2e-05 |  |",
        "| precision ↑ | 0.71 ± 0.01 |  |",
        "| recall ↑ | 0.5 |  |",
        "| closer than held out, pixels | 0.498 | 0.5 |",
        "| copies, pixels ↓ | 0.011 |  |",
        "| FID ↓ | 3.25 |  |",
        "| Inception score ↑ | 100 ± 2 |  |",
        "| decoder | pixels, factor 1 |",
    ):
        assert f"\n{line}\n" in page
    assert page.count("![") == 1
    assert "(nearest-1.png)" in page


def test_scores_of_other_networks_are_better_when_higher():
    evaluation = Evaluation({"score-Inception(6a7c0deb)": Number(7.0)}, {}, {})
    assert evaluation.rows() == [("score-Inception(6a7c0deb) ↑", "7", "")]


def test_the_terminal_shows_the_same_numbers():
    written = io.StringIO()
    Console(width=120, file=written).print(FIRST.table())
    shown = written.getvalue()
    assert "10,000 of runs/x, seed 0" in shown
    for cells in FIRST.rows():
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells


def test_a_file_without_a_final_newline_is_appended_to(tmp_path: Path):
    append_result(tmp_path, FIRST)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text().rstrip())
    append_result(tmp_path, SECOND)
    path.write_text(path.read_text() + "\n")
    append_result(tmp_path, FIRST)
    assert read_results(tmp_path) == [FIRST, SECOND, FIRST]


@pytest.mark.parametrize(
    "damage",
    [
        '{"numbers": {"FID"',
        "[]",
        "3",
        '{"numbers": {}, "floor": {}}',
        '{"numbers": {"FID": {"value": "low"}}, "floor": {}, "how": {}}',
        '{"numbers": {"FID": 3}, "floor": {}, "how": {}}',
        '{"numbers": {}, "floor": {}, "how": ["samples"]}',
        "\ufffe\x00",
    ],
)
def test_a_damaged_file_is_one_line_and_stays_as_it_is(tmp_path: Path, refuses: Callable, tree: Callable, damage: str):
    append_result(tmp_path, FIRST)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text() + damage + "\n")
    before = tree(tmp_path)
    for attempt in (lambda: read_results(tmp_path), lambda: append_result(tmp_path, SECOND)):
        refuses(attempt, "results.jsonl is damaged", "move it away")
    assert tree(tmp_path) == before
    path.rename(tmp_path / "away.jsonl")  # what the line advises
    append_result(tmp_path, SECOND)
    assert read_results(tmp_path) == [SECOND]


def test_bytes_that_are_not_text_are_one_line(tmp_path: Path, refuses: Callable):
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe\x00")
    refuses(lambda: read_results(tmp_path), "results.jsonl is damaged")
    (tmp_path / "results.jsonl").unlink()
    (tmp_path / "results.jsonl").mkdir()
    refuses(lambda: read_results(tmp_path), "results.jsonl is damaged")


def test_the_report_of_a_training_run_is_not_replaced(tmp_path: Path, refuses: Callable, tree: Callable):
    (tmp_path / "report.md").write_text("# digits\n")
    before = tree(tmp_path)
    refuses(lambda: append_result(tmp_path, FIRST), "report.md that is not of an evaluation", "--out")
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, refuses: Callable):
    (tmp_path / "file").write_text("")
    refuses(lambda: append_result(tmp_path / "file", FIRST), "cannot write", "results.jsonl")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_below_each_generated_image_are_the_two_nearest(tmp_path: Path, count: int):
    """Every image has its own colour, which is searched in the picture."""
    reds = np.arange(3 * count, dtype=np.uint8).reshape(3, count)
    images = np.zeros((3, count, 8, 8, 3), np.uint8) + np.array([0, 0, 200], np.uint8)
    images[..., 0] = reds[..., None, None]
    write_neighbours(Neighbours({}, {}, *images), tmp_path / "out" / "nearest.png")
    picture = np.asarray(Image.open(tmp_path / "out" / "nearest.png"))
    places = [[np.argwhere((picture == (red, 0, 200)).all(axis=2)) for red in row] for row in reds]
    assert all(len(place) == 64 * 64 for row in places for place in row)  # enlarged eight times
    for generated, in_features, in_pixels in zip(*places, strict=True):
        assert generated[:, 1].tolist() == in_features[:, 1].tolist() == in_pixels[:, 1].tolist()
        assert generated[:, 0].max() < in_features[:, 0].min() <= in_features[:, 0].max() < in_pixels[:, 0].min()
    assert len({tuple(generated[0]) for generated in places[0]}) == count
    assert len({generated[0][0] for generated in places[0]}) == -(-count // 8)  # rows
