"""Labels of samples to be measured: in the proportions of the training data, every class in turn, or drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ditlab.data import DataConfig, open_data
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.pipelines.pipeline import Labels

LabelOrder = Literal["proportional", "turn", "random"]


def choose_labels(
    model: Pipeline, order: LabelOrder, count: int, seed: int, class_counts: np.ndarray | None
) -> tuple[Labels, str]:
    """The labels of ``count`` samples, and how they were chosen, for the report.

    Args:
        model: whose classes they are.
        order: ``proportional`` to the training data, every class in ``turn``, or ``random``, drawn uniformly with the seed.
        count: number of samples.
        seed: of drawn labels.
        class_counts: training images of each class, int64 (classes,); None if unknown: labels in proportion are then in turn.

    Returns:
        Labels as ``Pipeline.batches`` takes them. The label of sample k does not depend on the count.
    """
    if not model.classes:
        return None, "none: unconditional"
    if order == "random":
        return model.random_labels(None, count, seed), "drawn at random with the seed"
    if order == "turn":
        return None, "every class in turn"
    if class_counts is None or len(class_counts) != model.classes or not class_counts.sum():
        return None, "every class in turn: the class counts of the training data are unknown"
    low, high = f"{class_counts.min():,}", f"{class_counts.max():,}"
    each = low if low == high else f"{low} to {high}"
    return in_proportion(class_counts, count).tolist(), f"in proportion to the training data, {each} images per class"


def choose_prompts(model: Pipeline, data: DataConfig | None, count: int) -> tuple[Labels, str]:
    """The prompts of ``count`` samples and what they are, for the report: captions of the test split, or of training images.

    Image k has the same prompt whatever the count. Without the images they are the model's own examples.
    """
    for split in () if data is None else ("test", "train"):
        assert data is not None
        try:
            captions = open_data(replace(data, split=split)).captions
        except UserError:
            continue
        if texts := [each[0] for each in captions or () if each and each[0].strip()]:
            return texts[:count], f"captions of {len(texts):,} images of the {split} split, in turn"
    return list(model.prompts), f"the model's {len(model.prompts)} example prompts, in turn"


def in_proportion(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Labels int64 (count,) of which any first part has the classes in proportion to their counts, int64 (classes,).

    Webster's method of apportionment: image j of a class of n images is at (j + 1/2) / n, and labels are sorted by it. Classes
    of equal counts are in turn.
    """
    # Of each class, at least as many as are chosen: rounding adds at most one image of every other class to the quota.
    needed = (count + len(class_counts)) * class_counts // class_counts.sum() + 2
    labels = np.repeat(np.arange(len(class_counts)), np.where(class_counts > 0, needed, 0))
    firsts = np.searchsorted(labels, labels)
    places = (np.arange(len(labels)) - firsts + 0.5) / class_counts[labels]
    return labels[np.argsort(places, kind="stable")][:count]
