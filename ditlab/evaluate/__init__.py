"""Measuring what models make."""

from ditlab.evaluate.evaluator import Evaluator, ExtractedFeatures, Neighbours, extract_features
from ditlab.evaluate.features import NETWORKS, FeatureNetwork, Features, concatenate, feature_network
from ditlab.evaluate.measure import Number, floor, measure
from ditlab.evaluate.metrics import enough, frechet_distance, inception_score, kernel_distance
from ditlab.evaluate.neighbours import Memorisation, memorisation, nearest, precision_recall
from ditlab.evaluate.page import Evaluation, append_result, read_results, write_neighbours
from ditlab.evaluate.real import Real, real_features
from ditlab.evaluate.sample_archive import read_archive
from ditlab.evaluate.statistics import Reference, Statistics, read_statistics, write_statistics

__all__ = [
    "NETWORKS",
    "Evaluation",
    "Evaluator",
    "ExtractedFeatures",
    "FeatureNetwork",
    "Features",
    "Memorisation",
    "Neighbours",
    "Number",
    "Real",
    "Reference",
    "Statistics",
    "append_result",
    "concatenate",
    "enough",
    "extract_features",
    "feature_network",
    "floor",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "measure",
    "memorisation",
    "nearest",
    "precision_recall",
    "read_archive",
    "read_results",
    "read_statistics",
    "real_features",
    "write_neighbours",
    "write_statistics",
]
