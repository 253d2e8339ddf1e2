"""``ditlab evaluate`` without its command line: samples of every kind, their settings, and what is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import together
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.progress import Progress, TaskID

from ditlab.data import DataConfig, open_data
from ditlab.diffusion import GuidanceConfig
from ditlab.errors import UserError
from ditlab.evaluate import Evaluation, Number, Reference, read_results, read_statistics, write_statistics
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.pipelines.pictures import image_files
from ditlab.recipes.evaluate import EvaluationConfig, evaluate_samples
from ditlab.recipes.labels import LabelOrder, in_proportion
from ditlab.recipes.samples import OnStep, Samples, open_samples
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE

NAME = "FD-EffNetLite0@64"
COUNT = 1290  # samples, ten more than the features of EfficientNet


def opened(
    source: object, count: int = 0, label_order: LabelOrder = "turn", batch: int = 100, size: tuple[int, ...] = (),
    **settings: object,
) -> Samples:  # fmt: skip
    def sampling(model: Pipeline) -> SampleConfig:
        return replace(model.defaults, **{"sampler": "euler", "steps": 2, **settings})  # type: ignore[arg-type]

    return open_samples(str(source), count, 3, label_order, batch, sampling, ALONE, size)


def evaluated(samples: Samples, out: Path | None = None, **config: Any) -> Evaluation:
    lines: list[str] = []
    found = evaluate_samples(
        samples, EvaluationConfig(**config), out or samples.folder, torch.device("cpu"), ALONE, lines.append
    )
    assert found is not None
    return found


def save_pngs(images: np.ndarray, folder: Path) -> None:
    folder.mkdir()
    for name, content in image_files(images, np.full(len(images), -1), (), {}):
        (folder / name).write_bytes(content)


def values(numbers: dict[str, Number]) -> dict[str, float]:
    return {name: number.value for name, number in numbers.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits_run: Path) -> Path:
    """A run of all digits, which may be written to."""
    return Path(shutil.copytree(digits_run, tmp_path_factory.mktemp("runs") / "digits"))


@pytest.fixture(scope="module")
def whole(run: Path) -> Evaluation:
    """Its samples against all digits."""
    return evaluated(opened(run, COUNT))


@pytest.fixture
def few(run: Path, tmp_path: Path) -> Path:
    """The same model, as if trained on 300 digits: too few for a covariance, which saves time."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("model.json", "model.safetensors", "recipe.json"):
        shutil.copy(run / name, folder / name)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["data"]["limit"] = 300
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture
def made(few: Path) -> np.ndarray:
    """120 of its samples."""
    return np.concatenate(list(opened(few, 120).batches()))


def test_a_run_is_measured_against_the_images_it_was_trained_on(run: Path, whole: Evaluation):
    assert list(whole.numbers) == [NAME, "KD-EffNetLite0@64", "precision", "recall"]
    assert list(whole.floor) == list(whole.numbers)
    assert whole.numbers[NAME].value > 3 * whole.floor[NAME].value > 0  # twenty steps of training make no digits
    assert whole.numbers["precision"].value < whole.floor["precision"].value
    assert read_results(run / "evaluation") == [whole]
    page = (run / "evaluation" / "report.md").read_text()
    assert f"| {NAME} ↓ | {whole.numbers[NAME]} | {whole.floor[NAME]} |" in page
    assert (run / "report.md").read_text().startswith("# digits")  # the training's


def test_everything_that_the_numbers_depend_on_is_recorded(run: Path, whole: Evaluation):
    how = dict(whole.how)
    assert how.pop("ditlab, torch, date").split(", ")[1] == torch.__version__
    facts = "".join(f", {name} {value}" for name, value in Pipeline.load(run).facts.items())
    assert how == {
        "samples": f"1,290 of {run}, guidance off, euler, 2 steps, seed 3",
        "model": f"{run}{facts}",
        "decoder": "pixels, factor 1",
        "guidance": "off",
        "labels": "every class in turn",
        "sampler": "euler, 2 steps, fp32",
        "seed": "3: image k of a seed is the same whatever the count",
        "feature network": f"{NAME}: efficientnet-lite0 at 64 pixels, antialiased bilinear resize",
        "real images": "digits: 1,797 images of 1x8x8, 10 classes, train",
        "real against real": "899 images against 898 images",
        "held out": "none: memorisation is not measured",
        "nearest": "nearest-1.png",
    }
    assert ", recipe digits" in facts


def test_labels_are_in_turn_or_drawn_with_the_seed(few: Path):
    turn, random = opened(few, 60), opened(few, 60, "random")
    assert random.settings["labels"] == "drawn at random with the seed"
    model = Pipeline.load(few)
    labels = model.random_labels(None, 60, 3)
    config = replace(model.defaults, sampler="euler", steps=2)
    expected = np.concatenate(list(model.batches(labels, 3, 60, config, 100)))
    np.testing.assert_array_equal(np.concatenate(list(random.batches())), expected)
    assert (np.concatenate(list(turn.batches())) != expected).any()


def test_a_reference_file_with_images_gives_precision_and_recall(few: Path, made: np.ndarray, tmp_path: Path):
    digits = open_data(DataConfig()).load().pixels.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "reference.npz", digits[:300])
    reference = str(tmp_path / "reference.npz")
    found = evaluated(opened(few, 120), reference=reference)
    assert list(found.numbers) == ["KD-EffNetLite0@64", "precision", "recall"]
    assert list(found.floor) == list(found.numbers)
    assert found.how["real images"].startswith(f"{reference}: reference.npz: 300 images of 1x8x8")
    assert found.how["real images"].endswith("300 images for precision and recall")
    assert not {"held out", "nearest"} & found.how.keys()
    np.savez(tmp_path / "large.npz", np.zeros((300, 8, 12, 1), np.uint8))
    with pytest.raises(UserError, match="images of 8x12, but the samples are 8x8"):
        evaluated(never(opened(few, 120)), reference=str(tmp_path / "large.npz"))


def test_guidance_is_recorded_with_its_channels_and_interval(few: Path):
    samples = opened(few, 5, guidance=GuidanceConfig(1.5, 0.2, 0.7, 3), precision="bf16")
    assert samples.settings["guidance"] == "1.5, the first 3 channels, t from 0.2 to 0.7"
    assert samples.settings["sampler"] == "euler, 2 steps, bf16"
    assert opened(few, 5, guidance=GuidanceConfig(1.5)).settings["guidance"] == "1.5, all channels"


def test_samples_of_a_model_a_folder_and_an_archive_give_the_same_numbers(few: Path, made: np.ndarray, tmp_path: Path):
    np.savez(tmp_path / "made.npz", made)
    save_pngs(made, tmp_path / "made")
    model = evaluated(opened(few, 120))
    archive = evaluated(opened(tmp_path / "made.npz"), recipe=str(few))
    folder = evaluated(opened(tmp_path / "made"), recipe=str(few))
    assert list(model.numbers) == ["KD-EffNetLite0@64", "precision", "recall"]
    assert values(archive.numbers) == pytest.approx(values(folder.numbers), rel=1e-5)  # grey, and its RGB in the folder
    for name in ("precision", "recall"):
        assert archive.numbers[name].value == pytest.approx(model.numbers[name].value, abs=1e-9)
    for name, place in (("few/evaluation", model), ("made-evaluation", folder)):
        assert read_results(tmp_path / name)[-1] == place
    assert archive.how["samples"] == "120 images of made.npz"
    assert folder.how["samples"] == "120 images of made/"
    assert model.how[NAME] == (
        "not measured: 120 samples are too few for the covariance of 1,280 features; at least 1,281 needed"
    )
    for found in (archive, folder):
        assert found.how["model"] == "unknown: the images were read from files"
        assert found.how["real images"] == "digits: 300 images of 1x8x8, 10 classes, train"


def test_a_second_evaluation_is_appended_and_no_picture_is_replaced(few: Path):
    first = evaluated(opened(few, 60))
    picture = (few / "evaluation" / "nearest-1.png").read_bytes()
    second = evaluated(opened(few, 50))
    assert read_results(few / "evaluation") == [first, second]
    page = (few / "evaluation" / "report.md").read_text()
    assert all(f"## {found.how['samples']}\n" in page for found in (first, second))
    assert (few / "evaluation" / "nearest-1.png").read_bytes() == picture
    with Image.open(few / "evaluation" / second.how["nearest"]) as drawn:
        assert min(drawn.size) > 500
    assert second.how["nearest"] == "nearest-2.png"


def test_images_of_files_are_drawn_from_all_classes(tmp_path: Path):
    """Files are sorted by class; here every class is a grey level."""
    greys = np.repeat(np.arange(10, dtype=np.uint8), 40)
    images = np.zeros((400, 8, 8, 1), np.uint8) + greys[:, None, None, None]
    np.savez(tmp_path / "all.npz", images)
    save_pngs(images, tmp_path / "all")
    for name in ("all.npz", "all"):
        samples = opened(tmp_path / name, 100)
        drawn = np.concatenate(list(samples.batches()))
        assert (samples.count, len(drawn)) == (100, 100)
        assert np.bincount(drawn[:, 0, 0, 0], minlength=10).min() >= 3
        everything = opened(tmp_path / name)
        assert everything.count == 400
        read = np.concatenate(list(everything.batches()))
        assert read.shape[3] == (1 if name == "all.npz" else 3)  # files are read as RGB
        assert sorted(image.tobytes() for image in read[..., :1]) == sorted(image.tobytes() for image in images)
        assert opened(tmp_path / name, 500).count == 400


def test_statistics_of_a_file_replace_real_images(whole: Evaluation, run: Path, tmp_path: Path):
    """The same distance as against the images themselves, and nothing that needs them."""
    np.savez(tmp_path / "made.npz", np.concatenate(list(opened(run, COUNT).batches())))
    stored = [
        path for path in (files.cache_home() / "features").rglob("whole.npz") if read_statistics(path).count == 1797
    ]
    reference = str(shutil.copy(stored[0], tmp_path / "reference.npz"))
    found = evaluated(opened(tmp_path / "made.npz"), reference=reference)
    assert list(found.numbers) == [NAME]
    assert found.floor == {}
    assert found.numbers[NAME].value == pytest.approx(whole.numbers[NAME].value, rel=1e-6)
    assert found.how["real images"] == f"{reference}: digits: 1,797 images of 1x8x8, 10 classes"
    assert not {"real against real", "held out", "nearest"} & found.how.keys()
    assert sorted(path.name for path in (tmp_path / "made-evaluation").iterdir()) == ["report.md", "results.jsonl"]


def test_memorisation_is_measured_where_a_test_split_is_held_out(few: Path, tmp_path: Path):
    """Noise: a folder of real images, some of them copied."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, 8, 8), np.uint8)
    for name, part in (("photos/train", images[:200]), ("photos/test", images[200:]), ("copies", images[:60])):
        (tmp_path / name).mkdir(parents=True)
        for index, image in enumerate(part):
            Image.fromarray(image).save(tmp_path / name / f"{index:03d}.png")
    recipe = json.loads((few / "recipe.json").read_text())
    recipe["data"] |= {"source": "folder", "path": str(tmp_path / "photos"), "limit": 0}
    (tmp_path / "photos.json").write_text(json.dumps(recipe))
    found = evaluated(opened(tmp_path / "copies"), recipe=str(tmp_path / "photos.json"))
    assert found.how["held out"] == f"{tmp_path / 'photos'}: 200 images of 1x8x8, no classes, test"
    for space in ("features", "pixels"):
        name = f"closer than held out, {space}"
        assert (found.numbers[name].value, found.floor[name].value) == (1, 0.5)
        assert (found.numbers[f"copies, {space}"].value, found.floor[f"copies, {space}"].value) == (1, 0.01)
    test = evaluated(
        opened(tmp_path / "copies"), tmp_path / "out", recipe=str(tmp_path / "photos.json"), reference="test"
    )
    assert list(test.numbers) == ["KD-EffNetLite0@64", "precision", "recall"]
    assert test.how["real images"].endswith("200 images of 1x8x8, no classes, test")
    assert test.numbers["precision"].value < found.numbers["precision"].value


def test_a_shipped_model_is_not_the_run_of_its_name(elsewhere: Path):
    """A run named fashion has an evaluation of its own."""
    (elsewhere / "runs" / "fashion").mkdir(parents=True)
    (elsewhere / "runs" / "fashion" / "recipe.json").write_text("no recipe")
    samples = opened("fashion", 10)
    assert samples.folder == Path("runs/fashion-shipped/evaluation")
    assert samples.data is not None
    assert samples.data.source == "fashion"
    assert samples.settings["decoder"] == "kl, factor 4"
    assert opened("fashion").count == 10_000


def test_a_model_of_an_unknown_recipe_needs_one(few: Path, tmp_path: Path, refuses: Callable):
    recipe = shutil.copy(few / "recipe.json", tmp_path / "elsewhere.json")
    (few / "recipe.json").unlink()
    record = json.loads((few / "model.json").read_text())
    record["facts"]["recipe"] = "mine"
    (few / "model.json").write_text(json.dumps(record))
    for source in (few, few / "model.safetensors"):
        samples = opened(source, 40)
        assert samples.data is None
        assert samples.folder == few / "evaluation"
        refuses(lambda samples=samples: evaluated(samples), "--recipe", "--reference")
    assert len(evaluated(opened(few, 40), recipe=str(recipe)).numbers) == 3


DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from ditlab.runtime.distributed import join, leave
from ditlab.recipes.evaluate import EvaluationConfig, evaluate_samples
from ditlab.recipes.samples import open_samples

processes, (recipe, out, *sources) = join(), sys.argv[1:]
for number, source in enumerate(sources):
    sampling = lambda model: replace(model.defaults, sampler="euler", steps=2)
    samples = open_samples(source, 120, 3, "proportional", 50, sampling, processes)
    config, place, lines = EvaluationConfig(recipe=recipe), Path(out) / str(number), []
    found = evaluate_samples(samples, config, place, torch.device("cpu"), processes, lines.append)
    assert (found is not None) == processes.is_main
leave()
"""


def forget_counts(run: Path) -> None:
    """Make a model file of one of a version that stored no class counts."""
    record = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**record, "class_counts": []}))


def test_three_processes_measure_what_one_does(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    forget_counts(few)  # which one process then reads from the data, for all
    samples = np.concatenate(list(opened(few, 120, "proportional", batch=50).batches()))
    np.savez(tmp_path / "made.npz", samples)
    save_pngs(samples, tmp_path / "made")
    sources = [few, tmp_path / "made.npz", tmp_path / "made"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = together(3, few, tmp_path / "many", *sources, script=DRIVER)
    monkeypatch.undo()
    assert ended.returncode == 0, ended.stderr
    for number, source in enumerate(sources):
        alone = evaluated(
            opened(source, 120, "proportional", batch=50), tmp_path / "alone" / str(number), recipe=str(few)
        )
        (many,) = read_results(tmp_path / "many" / str(number))
        assert many.how == alone.how
        for ours, theirs in ((many.numbers, alone.numbers), (many.floor, alone.floor)):
            assert values(ours) == pytest.approx(
                values(theirs), rel=1e-6, abs=1e-9
            )  # features of other batches, in float32
        pictures = [(tmp_path / name / str(number) / "nearest-1.png").read_bytes() for name in ("alone", "many")]
        assert pictures[0] == pictures[1]


def never(samples: Samples) -> Samples:
    """Samples that fail when they are read."""

    def batches(on_step: OnStep) -> Iterator[np.ndarray]:
        del on_step
        raise AssertionError("samples were read before everything was checked")

    return replace(samples, batches=batches)


def test_samples_too_few_for_any_metric_are_refused_before_any_is_generated(
    run: Path, whole: Evaluation, refuses: Callable, tree: Callable, tmp_path: Path
):
    before = tree(run)
    refuses(lambda: evaluated(never(opened(run, 3))), "3 samples", "at least 4")
    statistics = reference(tmp_path)  # without images there is nothing but the distance
    refuses(lambda: evaluated(never(opened(run, 1280)), reference=statistics), "1,280 samples", "1,281")
    assert tree(run) == before


def test_few_samples_are_measured_without_the_frechet_distance(run: Path, whole: Evaluation, tmp_path: Path):
    lines: list[str] = []
    samples, config = opened(run, 40), EvaluationConfig()
    found = evaluate_samples(samples, config, tmp_path / "out", torch.device("cpu"), ALONE, lines.append)
    assert found is not None
    assert list(found.numbers) == ["KD-EffNetLite0@64", "precision", "recall"]
    assert set(found.numbers) <= set(found.floor)
    reason = "40 samples are too few for the covariance of 1,280 features; at least 1,281 needed"
    assert f"{NAME} is skipped, the other metrics are measured: {reason}" in lines
    assert found.how[NAME] == f"not measured: {reason}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of 40 images of other sizes each, one with classes; the first as a zip and an .npz too; all grey but one."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, size in (("made", (24, 20)), ("real/cat", (24, 20)), ("mixed", (30, 20)), ("large", (48, 40))):
        (root / name).mkdir(parents=True)
        for index in range(40):
            shape = (*size, 3) if index == 7 else size
            shape = (21, 33) if (name, index) == ("mixed", 5) else shape
            Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(root / name / f"{index:02d}.png")
    with zipfile.ZipFile(root / "made.zip", "w") as archive:
        for path in sorted((root / "made").iterdir()):
            archive.write(path, path.name)
    np.savez(
        root / "made.npz",
        np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted((root / "made").iterdir())]),
    )
    return root


def test_what_is_not_used_of_the_real_images_is_said(photos: Path, tmp_path: Path):
    for name, count in (("train", 6), ("val", 5)):
        (tmp_path / "real" / name).mkdir(parents=True)
        for path in sorted((photos / "made").iterdir())[:count]:
            shutil.copy(path, tmp_path / "real" / name)
    (tmp_path / "real" / "train" / "notes.txt").touch()
    config, lines = EvaluationConfig(reference=str(tmp_path / "real")), list[str]()
    evaluate_samples(
        opened(tmp_path / "real" / "val"), config, tmp_path / "out", torch.device("cpu"), ALONE, lines.append
    )
    assert {"not used: 5 images of other splits", "skipped: 1 .txt"} <= set(lines)


def test_folders_archives_and_npz_are_measured_against_each_other(photos: Path, tmp_path: Path):
    """Neither side is of a model or a recipe."""
    expected = evaluated(opened(photos / "made"), tmp_path, reference=str(photos / "real"))
    assert list(expected.numbers) == ["KD-EffNetLite0@64", "precision", "recall"]
    assert list(expected.floor) == list(expected.numbers)
    assert expected.how["real images"] == f"{photos / 'real'}: 40 images of 3x24x20, 1 class"
    assert not {"held out", "nearest", "labels"} & expected.how.keys()  # nobody trained on them
    for name in ("made.zip", "made.npz"):
        found = evaluated(opened(photos / name), tmp_path, reference=str(photos / "real"))
        assert found.how["samples"] == f"40 images of {name}"
        assert values(found.numbers) == pytest.approx(values(expected.numbers), rel=1e-5)
        same = evaluated(opened(photos / "made"), tmp_path, reference=str(photos / name))
        assert (same.numbers["precision"].value, same.numbers["recall"].value) == (1, 1)


def test_images_of_several_sizes_are_refused_or_resized_as_asked(
    photos: Path, few: Path, tmp_path: Path, refuses: Callable
):
    for source, against in (("made", "large"), ("large", "made.npz"), ("made", "large.npz")):
        if against == "large.npz":
            np.savez(tmp_path / against, np.zeros((9, 48, 40, 3), np.uint8))
        place = (tmp_path if against == "large.npz" else photos) / against
        refuses(
            lambda source=source, place=place: evaluated(never(opened(photos / source)), reference=str(place)),
            "48x40",
            "--size",
        )
    line = refuses(
        lambda: evaluated(opened(photos / "made"), tmp_path, reference=str(photos / "mixed")), "30x20", "21x33"
    )
    assert "--data.size" not in line
    same = {"reference": str(photos / "mixed"), "out": tmp_path / "mixed"}
    line = refuses(lambda: evaluated(opened(photos / "mixed"), **same), "05.png", "--size")
    assert "--data" not in line
    for source in ("mixed", "made.npz", "large"):
        found = evaluated(
            opened(photos / source, size=(12, 16)), tmp_path / "out", reference=str(photos / "mixed"), size=(12, 16)
        )
        assert found.how["size"].startswith("12x16")
        assert "3x12x16" in found.how["real images"]
        assert (found.numbers["precision"].value == 1) == (source == "mixed")
    model = evaluated(opened(few, 20, size=(16,)), tmp_path / "out", reference=str(photos / "made.npz"), size=(16,))
    assert "1 x" not in model.how["real images"]
    assert "3x16x16" in model.how["real images"]


def test_labels_are_in_the_proportions_of_the_training_data(few: Path, tmp_path: Path):
    """By the model's own counts; for a model without them, by those of its 300 digits; without both, in turn."""
    model = Pipeline.load(few)
    assert f"{min(model.counts)} to {max(model.counts)} images" in opened(few, 60, "proportional").settings["labels"]
    forget_counts(few)
    samples = opened(few, 60, "proportional")
    counts = np.bincount(open_data(DataConfig(limit=300)).labels, minlength=10)
    assert (
        samples.settings["labels"]
        == f"in proportion to the training data, {counts.min()} to {counts.max()} images per class"
    )
    labels = in_proportion(counts, 60).tolist()
    config = replace(model.defaults, sampler="euler", steps=2)
    expected = np.concatenate(list(model.batches(labels, 3, 60, config, 100)))
    np.testing.assert_array_equal(np.concatenate(list(samples.batches())), expected)
    recipe = json.loads((few / "recipe.json").read_text())
    recipe["data"] |= {"source": "folder", "path": str(tmp_path / "gone")}
    (few / "recipe.json").write_text(json.dumps(recipe))
    samples = opened(few, 60, "proportional")
    assert samples.settings["labels"] == "every class in turn: the class counts of the training data are unknown"
    turn = np.concatenate(list(opened(few, 60, "turn").batches()))
    np.testing.assert_array_equal(np.concatenate(list(samples.batches())), turn)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any), st.integers(1, 300))
def test_any_first_labels_are_in_proportion(class_counts: list[int], count: int):
    counts = np.array(class_counts)
    labels = in_proportion(counts, count)
    assert len(labels) == count
    np.testing.assert_array_equal(in_proportion(counts, count + 50)[:count], labels)
    drawn = np.bincount(labels, minlength=len(counts))
    assert not drawn[counts == 0].any()
    # Webster's method: no label could go from one class to another and bring the shares nearer to those of the data.
    chosen = drawn > 0
    assert ((drawn[chosen] - 0.5) / counts[chosen]).max() <= (
        (drawn + 0.5)[counts > 0] / counts[counts > 0]
    ).min() + 1e-9


def test_labels_of_classes_of_one_size_are_in_turn():
    np.testing.assert_array_equal(in_proportion(np.full(7, 31), 100), np.arange(100) % 7)


class Recorded(Progress):
    """A progress bar that is not drawn."""

    def __init__(self, shown: bool) -> None:
        super().__init__(disable=True)
        self.seen: list[tuple[str, Any, str]] = []

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self.seen.append((self.tasks[task_id].description, fields["completed"], fields.get("rate", "")))


def test_the_progress_bar_shows_every_step(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bars: list[Recorded] = []
    monkeypatch.setattr("ditlab.recipes.evaluate.progress_bar", lambda shown: bars.append(Recorded(shown)) or bars[-1])
    evaluated(opened(few, 10, batch=8), tmp_path)
    lines = [("samples", images, f"step {step} of 2 of a batch") for images, step in ((4, 1), (8, 2), (9, 1), (10, 2))]
    lines = [*lines[:2], ("samples", 8, ""), *lines[2:], ("samples", 10, "")]
    assert bars[-1].seen == lines
    assert bars[0].seen[-1][:2] == ("real images", 300)


def test_the_progress_of_sampling_is_by_step(few: Path):
    seen: list[tuple[float, int]] = []
    samples = opened(few, 10, batch=4, steps=3)
    made = [len(images) for images in samples.batches(lambda done, step: seen.append((done, step)))]
    assert made == [4, 4, 2]
    assert samples.steps == 3
    assert [step for _, step in seen] == [1, 2, 3] * 3
    done = [4 / 3, 8 / 3, 4, 4 + 4 / 3, 4 + 8 / 3, 8, 8 + 2 / 3, 8 + 4 / 3, 10]
    assert [images for images, _ in seen] == pytest.approx(done)


def reference(folder: Path, **others: object) -> str:
    """A file of statistics."""
    fields = {"mean": np.zeros(1280), "covariance": np.eye(1280), "count": 5000, "distance": NAME, "size": (8, 8)}
    write_statistics(folder / "reference.npz", Reference(**{**fields, **others}))  # type: ignore[arg-type]
    return str(folder / "reference.npz")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"reference": "vaildation"}, ("'vaildation'", "train, valid, test", ".npz")),
        ({"reference": "test"}, ("digits has no test split",)),
        ({"reference": "nowhere.npz"}, ("nowhere.npz", "No such file")),
        ({"recipe": "folder"}, ("'folder'", "names no images", "--reference")),
        ({"recipe": "imagenet256"}, ("'imagenet256'", "names no images", "--reference")),
        ({"recipe": "digts"}, ("'digts'", "did you mean 'digits'?")),
        ({"network": "incepton"}, ("'incepton'", "did you mean 'inception'?")),
        ({"network": "inception", "weights": "nowhere.pth"}, ("no weights at nowhere.pth",)),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_invalid_reference_is_refused_before_any_sample_is_generated(
    few: Path, elsewhere: Path, refuses: Callable, tree: Callable, how: dict[str, str], words: tuple[str, ...]
):
    before, samples = tree(few), never(opened(few, 50))
    refuses(lambda: evaluated(samples, None, **how), *words)
    assert tree(few) == before


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"distance": "FID", "mean": np.zeros(2048), "covariance": np.eye(2048)}, ("FID", NAME)),
        ({"distance": "FD-EffNetLite0@224"}, ("FD-EffNetLite0@224", NAME)),
        ({"mean": np.zeros(64), "covariance": np.eye(64)}, ("64 features", "1280")),
        ({"size": (32, 32)}, ("32x32", "8x8")),
    ],
    ids=["network", "side", "width", "size"],
)
def test_statistics_of_another_kind_are_refused(
    few: Path, tmp_path: Path, refuses: Callable, tree: Callable, others: dict, words: tuple[str, ...]
):
    path, before, samples = reference(tmp_path, **others), tree(few), never(opened(few, 50))
    refuses(lambda: evaluated(samples, reference=path), "reference.npz", *words)
    assert tree(few) == before


def test_statistics_without_their_keys_are_refused(few: Path, tmp_path: Path, refuses: Callable):
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    samples = never(opened(few, 50))
    refuses(lambda: evaluated(samples, reference=str(tmp_path / "other.npz")), "other.npz", "no mu", "mean")


def test_samples_of_another_size_than_the_real_images_are_refused(few: Path, tmp_path: Path, refuses: Callable):
    np.savez(tmp_path / "large.npz", np.zeros((50, 16, 12, 1), np.uint8))
    samples = never(opened(tmp_path / "large.npz"))
    refuses(lambda: evaluated(samples, recipe=str(few)), "8x8", "16x12")
    assert not (tmp_path / "large-evaluation").exists()


@pytest.mark.parametrize("shapes", [((8, 8), (8, 9)), ((8, 8), (16, 16))], ids=str)
def test_a_folder_of_mixed_sizes_is_refused(few: Path, tmp_path: Path, refuses: Callable, shapes: tuple):
    (tmp_path / "mixed").mkdir()
    for index in range(20):
        Image.new("L", shapes[index == 15][::-1]).save(tmp_path / "mixed" / f"{index:02d}.png")
    line = refuses(lambda: opened(tmp_path / "mixed"), "15.png", "one size", "--size")
    assert "--data.size" not in line
    assert not (tmp_path / "mixed-evaluation").exists()


def test_a_folder_with_images_that_cannot_be_read_is_refused(few: Path, tmp_path: Path, refuses: Callable):
    (tmp_path / "broken").mkdir()
    for index in range(20):
        Image.new("L", (8, 8)).save(tmp_path / "broken" / f"{index:02d}.png")
    (tmp_path / "broken" / "07.png").write_bytes(b"nothing")
    samples = opened(tmp_path / "broken")
    refuses(lambda: evaluated(samples, recipe=str(few)), "cannot be read", "07.png")
    assert not (tmp_path / "broken-evaluation").exists()


def test_a_source_without_samples_is_one_line(elsewhere: Path, few: Path, refuses: Callable):
    np.savez(elsewhere / "empty.npz", images=np.zeros((3, 8, 8, 1), np.uint8))
    (elsewhere / "unfinished").mkdir()
    shutil.copy(few / "recipe.json", elsewhere / "unfinished")
    (elsewhere / "nothing").mkdir()
    (elsewhere / "one.png").write_bytes(b"")
    for source, words in {
        "empty.npz": ("no arr_0", "images"),
        "nowhere.npz": ("nowhere.npz",),
        "unfinished": ("without a finished model", "ditlab train unfinished"),
        "nothing": ("nothing contains no images",),
        "runs/typo": ("no samples at runs/typo", "a folder or an archive of images", "fashion"),
        "one.png": ("one.png is one image",),
        "runs/model.safetensors": ("no model in runs/model.safetensors",),
    }.items():
        refuses(partial(opened, source), *words)
    assert not list(elsewhere.glob("*-evaluation"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "eular"}, ("'eular'", "did you mean 'euler'?")),
        ({"steps": 0}, ("0 sampling steps",)),
        ({"guidance": GuidanceConfig(-1)}, ("guidance scale -1",)),
    ],
    ids=["sampler", "steps", "guidance"],
)
def test_invalid_sampling_settings_are_refused_at_once(
    few: Path, refuses: Callable, settings: dict, words: tuple[str, ...]
):
    refuses(lambda: opened(few, 50, **settings), *words)


@pytest.mark.parametrize(("count", "seed", "batch"), [(-1, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_invalid_counts_are_refused(few: Path, refuses: Callable, count: int, seed: int, batch: int):
    line = refuses(lambda: open_samples(str(few), count, seed, "turn", batch, lambda model: model.defaults, ALONE))
    assert f"count {count} and seed {seed} must be 0 or more, batch {batch} 1 or more" in line


def test_a_folder_with_another_report_is_refused_before_any_sample_is_generated(
    run: Path, few: Path, refuses: Callable, tree: Callable
):
    samples = never(opened(few, 50))
    before = tree(run)
    refuses(lambda: evaluated(samples, run), "report.md that is not of an evaluation", "--out")
    assert tree(run) == before
    (few / "evaluation").mkdir()
    (few / "evaluation" / "results.jsonl").write_text('{"numbers"')
    before = tree(few)
    refuses(lambda: evaluated(samples), "results.jsonl is damaged", "--out")
    assert tree(few) == before
