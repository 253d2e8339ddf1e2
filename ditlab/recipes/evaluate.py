"""``ditlab evaluate``: images of a model, a folder or an archive against the real ones they should be like."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import ditlab
from ditlab.data import open_data
from ditlab.data.config import SPLITS
from ditlab.errors import UserError, nearest
from ditlab.evaluate import (
    Evaluation,
    Evaluator,
    FeatureNetwork,
    Number,
    append_result,
    enough,
    extract_features,
    feature_network,
    read_results,
    read_statistics,
    write_neighbours,
)
from ditlab.recipes.find import find_recipe
from ditlab.recipes.prepare import Log
from ditlab.recipes.samples import Samples
from ditlab.runtime.console import progress_bar
from ditlab.runtime.distributed import Processes


@dataclass(frozen=True)
class EvaluationConfig:
    """How samples are measured.

    Attributes:
        network: feature network.
        weights: file of its weights, where they are not the usual ones.
        reference: train or test, the part of the data to measure against, or an .npz of statistics.
        recipe: whose data that is, where the samples do not say.
    """

    network: str = "efficientnet-lite0"
    weights: str = ""
    reference: str = "train"
    recipe: str = ""


def build_evaluator(
    samples: Samples, how: EvaluationConfig, device: torch.device, processes: Processes, log: Log
) -> tuple[FeatureNetwork, Evaluator | None]:
    """The feature network, and in the first process the real images it has seen.

    Raises:
        UserError: no real images are known, they are of another size, or the weights are not to be had.
    """

    def ready() -> None:
        feature_network(how.network, samples.size, how.weights)

    if processes.size > 1:
        processes.broadcast_from_main(ready)  # the first one downloads weights, and says for all what is amiss
    network = feature_network(how.network, samples.size, how.weights, device)
    if how.reference.endswith(".npz"):
        path = Path(how.reference)
        whole = read_statistics(path)
        whole.check(path, network.distance, network.width, samples.size)
        return network, Evaluator(network, whole) if processes.is_main else None
    if how.reference not in SPLITS:
        raise UserError(
            f"unknown --reference {how.reference!r}; {nearest(how.reference, SPLITS)}, or an .npz of statistics"
        )
    data = find_recipe(how.recipe)[0].data if how.recipe else samples.data
    if data is None:
        raise UserError(
            "these samples do not say what they should be like: give --recipe NAME or RUN, whose data that is, or "
            "--reference with an .npz of statistics"
        )
    dataset = open_data(replace(data, split=how.reference))
    if dataset.shape[1:] != samples.size:
        theirs, ours = ("x".join(map(str, size)) for size in (dataset.shape[1:], samples.size))
        raise UserError(f"the real images are {theirs}, the samples {ours}; measure images of one size")
    log(f"real images: {dataset.describe()}, {how.reference}; features: {network.distance}")
    with progress_bar(shown=processes.is_main) as bar:
        task = bar.add_task("real images", total=len(dataset), rate="")

        def told(done: int) -> None:
            bar.update(task, completed=done)

        return network, Evaluator.of(dataset, network, processes, told)


def evaluate_samples(
    samples: Samples, how: EvaluationConfig, out: Path, device: torch.device, processes: Processes, log: Log
) -> Evaluation | None:
    """Measure samples, add the numbers to ``out``, and draw the training images nearest to them.

    Args:
        samples: what is measured.
        how: and against what.
        out: folder of ``results.jsonl``, ``report.md`` and the pictures; nothing in it is replaced.
        device: where the feature network runs.
        processes: that share the work.
        log: writes one line to the console.

    Returns:
        The numbers, in the first process.

    Raises:
        UserError: too few samples, or what was asked for cannot be had.
    """
    processes.broadcast_from_main(lambda: read_results(out))  # what is amiss there is said before hours of sampling
    network, evaluator = build_evaluator(samples, how, device, processes, log)

    def of_real() -> dict[str, Number]:
        assert evaluator is not None
        if evaluator.can_measure:
            enough(samples.count, network.width)
        return evaluator.floor()

    floor = processes.broadcast_from_main(of_real)  # so is whether there are images enough
    with progress_bar(shown=processes.is_main) as bar:
        task = bar.add_task("samples", total=samples.count, rate="")

        def told(done: int) -> None:
            bar.update(task, completed=min(done, samples.count))

        seen = extract_features(network, samples.batches(), processes, told)
    if evaluator is None or seen is None:
        return None
    numbers, words = evaluator.measure(seen), samples.how | _words(evaluator, how)
    neighbours = evaluator.neighbours(seen)
    if neighbours is not None:
        numbers, floor = numbers | neighbours.numbers, floor | neighbours.expected
        words["nearest"] = f"nearest-{len(read_results(out)) + 1}.png"
        write_neighbours(neighbours, out / words["nearest"])
    evaluation = Evaluation(numbers, floor, words)
    append_result(out, evaluation)
    return evaluation


def _words(evaluator: Evaluator, how: EvaluationConfig) -> dict[str, str]:
    """What the numbers depend on beside the samples."""
    network, whole, real = evaluator.network, evaluator.whole, evaluator.real
    words = {"feature network": f"{network.distance}: {network.name} at {network.side} pixels"}
    if real is None:
        words["real images"] = ": ".join(part for part in (how.reference, whole.images) if part)
    else:
        words["real images"] = real.describe()
        words["real against real"] = " against ".join(f"{half.count:,} images" for half in real.halves)
    if not evaluator.can_measure:
        least = f"{network.width:,} features; at least {network.width + 1:,}"
        words[network.distance] = f"not measured: {whole.count:,} real images are too few for a covariance of {least}"
    if real is not None and how.reference == "train":
        apart = evaluator.held_out
        words["held out"] = "none: memorisation is not measured" if apart is None else apart.describe()
    words["ditlab, torch, date"] = f"{ditlab.__version__}, {torch.__version__}, {datetime.date.today()}"
    return words
