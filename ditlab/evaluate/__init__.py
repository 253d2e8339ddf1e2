"""Metrics of generated images; called, it is ``ditlab.recipes.api.evaluate``."""

import sys

from ditlab import CallablePackage
from ditlab.evaluate.evaluator import Evaluator, ExtractedFeatures, Neighbours, extract_features, small_pixels
from ditlab.evaluate.features import FeatureNetwork, Features, concatenate
from ditlab.evaluate.measure import Number, floor, measure, metric_names
from ditlab.evaluate.metrics import LEAST, frechet_distance, inception_score, kernel_distance
from ditlab.evaluate.neighbours import Memorisation, memorisation, nearest_neighbours, precision_recall
from ditlab.evaluate.networks import NETWORKS, feature_network
from ditlab.evaluate.page import Evaluation, append_result, read_results, write_neighbours
from ditlab.evaluate.real import RealImages, extract, real_features
from ditlab.evaluate.sample_archive import open_archive, read_archive
from ditlab.evaluate.statistics import Reference, Statistics, read_statistics, write_statistics

__all__ = [
    "LEAST", "NETWORKS", "Evaluation", "Evaluator", "ExtractedFeatures", "FeatureNetwork", "Features", "Memorisation",
    "Neighbours", "Number", "RealImages", "Reference", "Statistics", "append_result", "concatenate", "extract",
    "extract_features", "feature_network", "floor", "frechet_distance", "inception_score", "kernel_distance",
    "measure", "memorisation", "metric_names", "nearest_neighbours", "open_archive",
    "precision_recall", "read_archive", "read_results", "read_statistics", "real_features", "small_pixels",
    "write_neighbours", "write_statistics",
]  # fmt: skip

sys.modules[__name__].__class__ = CallablePackage
