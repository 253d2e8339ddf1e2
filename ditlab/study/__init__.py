"""Studies: many runs that answer one question, and the report of what came out."""

from ditlab.study.plan import STUDIES, Plan
from ditlab.study.run import run_study

__all__ = ["STUDIES", "Plan", "run_study"]
