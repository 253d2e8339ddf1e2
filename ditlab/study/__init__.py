"""Studies: many training runs that answer one question, and a report of their results."""

from ditlab.study.plan import STUDIES, Plan
from ditlab.study.run import run_study

__all__ = ["STUDIES", "Plan", "run_study"]
