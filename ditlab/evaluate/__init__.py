"""Measuring what models make."""

from ditlab.evaluate.neighbours import precision_recall

__all__ = ["precision_recall"]
