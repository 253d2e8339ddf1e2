"""The loop on a module small enough to train by hand beside it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ditlab.data import DataOrder
from ditlab.diffusion import Positions
from ditlab.errors import UserError
from ditlab.pipelines import grid, write_png
from ditlab.runtime.distributed import ALONE
from ditlab.train import Callback, Event, Task, TrainConfig, read_metrics, train
from ditlab.train.meter import MetricAverager
from ditlab.train.stop import PictureTimes
from ditlab.train.trainer import MOST_SKIPPED

CPU = torch.device("cpu")
COUNT = 40


class Line(Task):
    """Fit a line to points, with noise on them; some images may be poison, and it may stop."""

    def __init__(self, poison: str = "", where: int = -1, stop_after: int = -1):
        torch.manual_seed(0)
        self.module = nn.Linear(3, 2)
        self.count, self.fingerprint = COUNT, "points"
        random = np.random.default_rng(0)
        self.x = torch.from_numpy(random.normal(size=(COUNT, 3)).astype(np.float32))
        self.y = self.x @ torch.from_numpy(random.normal(size=(3, 2)).astype(np.float32))
        self.poison, self.where, self.steps_left = poison, where, stop_after

    def read(self, indices: np.ndarray, flips: np.ndarray, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.x[indices].clone()
        x[flips] = -x[flips]
        return {"x": x, "y": self.y[indices], "bad": torch.from_numpy(indices == self.where)}

    def draw(self, positions: Positions) -> dict[str, Tensor]:
        return {"t": positions.uniform("t"), "noise": positions.normal("noise", (3,))}

    def loss(self, module: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        if self.steps_left == 0:
            raise InterruptedError("stopped by the test")
        self.steps_left -= 1
        noised = batch["x"] + draws["t"][:, None] * draws["noise"]
        losses = (module(noised) - batch["y"]).square().mean(dim=1)
        if self.poison == "loss":
            losses = torch.where(batch["bad"], torch.nan, losses)
        if self.poison == "gradient" and batch["bad"].any():  # adds zero to the loss and infinity to its gradient
            weight = self.module.weight.sum()  # type: ignore[operator]
            losses = losses + (weight - weight.detach()).sqrt()
        return losses


class Files(Callback):
    """Writes the averaged weights and a picture."""

    def on_checkpoint(self, event: Event) -> None:
        torch.save(event.average.state_dict(), event.folder / "model.pt")

    def on_samples(self, event: Event) -> dict[str, object]:
        write_png(grid(np.zeros((1, 8, 8, 1), np.uint8), 1), event.picture)
        return {"weight": float(event.average.weight.sum())}  # type: ignore[operator]


CONFIG = TrainConfig(
    images=16 * 12, batch=16, lr=0.05, beta2=0.95, weight_decay=0.1, warmup=0.25, cooldown=0.5, ema=0.7,
    log=32, checkpoint=48, samples=96, keep_checkpoints=2, microbatch=16,
)  # fmt: skip


def run(task: Task, folder: Path, config: TrainConfig = CONFIG, seed: int = 3) -> list[str]:
    """Train; returns the log lines."""
    lines: list[str] = []
    train(
        task,
        config,
        seed=seed,
        flip=True,
        folder=folder,
        device=CPU,
        log=lines.append,
        title="line",
        callbacks=[Files()],
    )
    return lines


def test_the_loop_is_adamw_and_ema_over_the_order_and_the_draws(tmp_path: Path):
    run(Line(), tmp_path)
    task = Line()
    network = task.module
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    order, losses = DataOrder(COUNT, 3, True), []
    for step in range(12):
        positions = Positions(3, 16 * step, 16)
        t, noise = positions.uniform("t"), positions.normal("noise", (3,))
        indices, flips = order.batch(16 * step, 16)
        x = task.x[indices] * torch.where(torch.from_numpy(flips), -1.0, 1.0)[:, None]
        error = network(x + t[:, None] * noise) - task.y[indices]
        loss = error.square().mean(dim=1)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.param_groups[0]["lr"] = 0.05 * min(1, (step + 1) / 3) * min(1, (12 - step) / 6)
        optimiser.step()
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        losses.append(loss.detach())
    trained = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in average.items():
        assert torch.equal(trained[name], value), name
    rows = read_metrics(tmp_path)
    assert [row["images"] for row in rows] == [32, 64, 96, 128, 160, 192]
    for row, (first, second) in zip(rows, zip(losses[::2], losses[1::2], strict=True), strict=True):
        assert row["loss"] == pytest.approx(float(torch.cat([first, second]).double().mean()), rel=1e-9)
    assert "weight" in rows[2]
    assert "weight" in rows[5]
    assert "weight" not in rows[0]


def test_every_step_has_draws_of_its_own_and_the_same_again():
    first = [Positions(seed, 4 * step, 4).uniform("t") for seed in (0, 1) for step in (0, 1)]
    again = [Positions(seed, 4 * step, 4).uniform("t") for seed in (0, 1) for step in (0, 1)]
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert len({tuple(draw.tolist()) for draw in first}) == 4


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 11])
def test_a_run_stopped_after_any_step_resumes_to_the_same_end(tmp_path: Path, steps: int, metrics):
    run(Line(), tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(Line(stop_after=steps), tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"images": 11')  # a row cut off in the middle
    lines = run(Line(), tmp_path / "parts")
    done = steps // 3 * 48
    assert lines == ([f"resumed from the checkpoint at {done:,} of 192 images"] if done else [])
    for folder in ("whole", "parts"):
        assert [path.name for path in sorted((tmp_path / folder / "checkpoints").iterdir())] == [
            "000000000144",
            "000000000192",
        ]
    whole, parts = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, tree):
    run(Line(), tmp_path)
    before = tree(tmp_path)
    run(Line(stop_after=0), tmp_path)
    assert tree(tmp_path) == before


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    for keep in (1, 3):
        run(Line(), tmp_path / str(keep), TrainConfig(images=160, batch=16, checkpoint=32, keep_checkpoints=keep))
        names = sorted(path.name for path in (tmp_path / str(keep) / "checkpoints").iterdir())
        assert names == [f"{images:012d}" for images in (96, 128, 160)][-keep:]


def test_a_damaged_newer_checkpoint_does_not_push_out_the_good_one_just_written(tmp_path: Path):
    config = TrainConfig(images=160, batch=16, checkpoint=80, keep_checkpoints=2, microbatch=16)
    run(Line(), tmp_path, config)
    (tmp_path / "checkpoints" / "000000000160" / "state.json").write_text("{}")
    with pytest.raises(InterruptedError):
        run(
            Line(stop_after=3),
            tmp_path,
            TrainConfig(images=160, batch=16, checkpoint=16, keep_checkpoints=1, microbatch=16),
        )
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["000000000128", "000000000160"]
    assert run(Line(), tmp_path, config)[-1] == "resumed from the checkpoint at 128 of 160 images"


def first_step_with(index: int) -> int:
    order = DataOrder(COUNT, 3, True)
    return next(step for step in range(12) if index in order.batch(16 * step, 16)[0])


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_with_a_nan_gradient_is_skipped_and_counted(tmp_path: Path, poison: str):
    index = int(DataOrder(COUNT, 3, True).batch(16 * 2, 8)[0][-1])  # first met in step 2
    bad = [step for step in range(12) if index in DataOrder(COUNT, 3, True).batch(16 * step, 16)[0]]
    assert bad[0] == 2
    task = Line(poison, index)
    run(task, tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["skipped"] for row in rows] == [sum(step < row["images"] / 16 for step in bad) for row in rows]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert all(parameter.isfinite().all() for parameter in task.module.parameters())
    # By hand, without those steps: AdamW has not seen them, and the average stood where the weights stood.
    by_hand = Line()
    optimiser = torch.optim.AdamW(by_hand.module.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in set(range(12)) - set(bad):
        draws = by_hand.draw(Positions(3, 16 * step, 16))
        batch = by_hand.read(*DataOrder(COUNT, 3, True).batch(16 * step, 16), draws)
        optimiser.zero_grad()
        by_hand.loss(by_hand.module, batch, draws).mean().backward()
        optimiser.param_groups[0]["lr"] = CONFIG.lr_at(step)
        optimiser.step()
    trained, expected = task.module.state_dict(), by_hand.module.state_dict()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


class Poisoned(Line):
    """From some step on every gradient is NaN."""

    def loss(self, module: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        return super().loss(module, batch, draws) * (torch.nan if self.steps_left < -30 else 1.0)


def test_too_many_such_steps_in_a_row_stop_with_advice_and_earlier_checkpoints_stand(tmp_path: Path):
    config = TrainConfig(images=16 * 200, batch=16, lr=0.05, log=160, checkpoint=320, samples=3200, keep_checkpoints=9)
    with pytest.raises(UserError) as caught:
        run(Poisoned(), tmp_path, config)
    message = str(caught.value)
    count = int(re.search(r"(\d+) of them in a row", message)[1])  # type: ignore[index]
    assert MOST_SKIPPED <= count < MOST_SKIPPED + 20  # looked at every tenth step, and at checkpoints
    assert "--train.lr (now 0.05)" in message
    assert "\n" not in message
    images = [int(path.name) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert images
    assert images[-1] < 16 * 60
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].isfinite().all()


def test_nan_weights_reach_no_checkpoint(tmp_path: Path):
    task = Line()
    config = TrainConfig(images=32, batch=16, lr=0.9, weight_decay=0.0, log=16, checkpoint=16)
    task.module.bias.data.fill_(torch.inf)  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match="a weight is NaN or infinite"):
        run(task, tmp_path, config)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_long_gradient_is_clipped(tmp_path: Path):
    runs = {}
    for clip in (0.0, 1e-3, 1e9):
        task = Line()
        config = TrainConfig(images=16, batch=16, lr=0.1, beta2=0.0, max_grad_norm=clip)
        run(task, tmp_path / str(clip), config)
        runs[clip] = task.module.state_dict()
    assert all(torch.equal(runs[0.0][name], runs[1e9][name]) for name in runs[0.0])
    start = Line().module.state_dict()
    # AdamW's first step does not see the gradient's length but for its epsilon of 1e-8: shorter is a little less.
    moved = {clip: (weights["weight"] - start["weight"]).abs() for clip, weights in runs.items()}
    assert (moved[1e-3] <= moved[0.0]).all()
    assert not torch.equal(moved[1e-3], moved[0.0])


@pytest.mark.parametrize("part", [1, 3, 5, 8, 16])
def test_a_batch_in_parts_is_the_same_to_rounding(tmp_path: Path, part: int, metrics):
    whole, parts = Line(), Line()
    run(whole, tmp_path / "whole")
    run(parts, tmp_path / "parts", replace(CONFIG, microbatch=part))
    for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path):
    (tmp_path / "checkpoints" / ".000000000048.x1.part").mkdir(parents=True)
    (tmp_path / "samples").mkdir()
    left = [tmp_path / ".model.pt.x1.part", tmp_path / "samples" / ".000000000096.png.x1.part"]
    for path in left:
        path.write_text("half")
    run(Line(), tmp_path)
    assert not list(tmp_path.rglob("*.part"))


YES = torch.tensor(True)


def test_losses_fall_into_the_bins_of_their_times():
    meter = MetricAverager(CPU)
    losses, times = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([0.0, 0.05, 0.1, 0.95, 1.0])
    meter.add(losses[:2], times[:2], YES)
    meter.add(losses[2:], times[2:], YES)
    meter.add(losses * torch.nan, times, ~YES)
    row = meter.result(ALONE)
    assert row["loss"] == pytest.approx(31 / 5)
    assert row["loss_by_time"] == [1.5, 4.0, None, None, None, None, None, None, None, 12.0]
    assert row["skipped"] == 1
    assert meter.result(ALONE) == {"loss": None, "loss_by_time": [None] * 10, "skipped": 1}
    meter.add(losses, None, YES)
    assert meter.result(ALONE) == {"loss": pytest.approx(31 / 5), "skipped": 1}


def test_skipped_steps_are_counted_in_all_and_in_a_row():
    meter = MetricAverager(CPU)
    for finite in (True, False, False, True, False, False, False, True, False):
        meter.add(torch.ones(2), None, torch.tensor(finite))
    assert meter.skipped.tolist() == [6, 1, 3]
    again = MetricAverager(CPU)
    again.restore(json.loads(json.dumps(meter.state(ALONE))), ALONE)
    assert again.state(ALONE) == meter.state(ALONE)


def test_many_small_losses_are_added_without_rounding_away():
    meter = MetricAverager(CPU)
    for _ in range(100):
        meter.add(torch.full((1000,), 0.1), torch.full((1000,), 0.35), YES)
    assert meter.result(ALONE)["loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_metrics_pass_over_what_is_no_row(tmp_path: Path):
    rows = [json.dumps({"images": 1}), '{"images": 2, "lo', json.dumps({"images": 3})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert read_metrics(tmp_path) == [{"images": 1}, {"images": 3}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_run_does_not_resume_with_other_images(tmp_path: Path):
    with pytest.raises(InterruptedError):
        run(Line(stop_after=5), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = Line()
    other.fingerprint = "other points"
    with pytest.raises(UserError, match="trained on other images"):
        run(other, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def train_with(first_picture: float, folder: Path, config: TrainConfig = CONFIG) -> list[str]:
    """The pictures of a run, in order of drawing."""
    drawn: list[str] = []

    class Pictures(Files):
        def on_samples(self, event: Event) -> dict[str, object]:
            drawn.append(event.picture.name)
            assert event.preview == drawn[-1].startswith("preview-")
            return super().on_samples(event)

    train(
        Line(), config, seed=3, flip=True, folder=folder, device=CPU, log=print, title="line", callbacks=[Pictures()],
        first_picture=first_picture,
    )  # fmt: skip
    return drawn


def test_previews_are_drawn_by_time_and_change_nothing_else(tmp_path: Path, metrics):
    assert train_with(60.0, tmp_path / "none") == ["000000000096.png", "000000000192.png"]
    previews = train_with(0.0, tmp_path / "previews")
    assert previews[0] == "preview-000000000016.png"
    assert [name for name in previews if not name.startswith("preview-")] == ["000000000096.png", "000000000192.png"]
    assert len(previews) < 12  # each at twice the time of the last
    assert metrics(tmp_path / "none") == metrics(tmp_path / "previews")
    none, some = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("none", "previews"))
    assert all(torch.equal(none[name], some[name]) for name in none)


def test_a_preview_is_due_at_twice_the_time_of_the_last_picture():
    times = PictureTimes(60)
    due = [second for second in range(1, 1000) if times.due(second)]
    assert due == [60, 120, 240, 480, 960]
    times = PictureTimes(60)
    times.drawn(50)  # by the number of images
    assert [second for second in range(51, 300) if times.due(second)] == [100, 200]
    times = PictureTimes(60)
    times.drawn(10)
    assert not times.due(59)
    assert times.due(60)


def test_a_resumed_run_takes_the_number_of_threads_of_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ditlab.train.timing.ALL", 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(Line(), tmp_path)
        torch.set_num_threads(1)
        run(Line(), tmp_path, replace(CONFIG, images=16 * 15))
        assert torch.get_num_threads() == 2
        states = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("checkpoints/*/state.json"))]
        assert [state["threads"] for state in states] == [2, 2]
        run(Line(), tmp_path, replace(CONFIG, images=16 * 18, threads=1))
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "3")  # read by PyTorch at its start
        torch.set_num_threads(3)
        run(Line(), tmp_path, replace(CONFIG, images=16 * 21))
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr("ditlab.train.timing.ALL", 2)  # a smaller machine
        torch.set_num_threads(2)
        run(Line(), tmp_path, replace(CONFIG, images=16 * 24))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_length_that_was_not_chosen_is_refused_before_anything_is_written(tmp_path: Path, refuses):
    refuses(lambda: run(Line(), tmp_path / "run", replace(CONFIG, images=0)), "--train.images 0")
    assert not (tmp_path / "run").exists()
