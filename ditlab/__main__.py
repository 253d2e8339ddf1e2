"""``python -m ditlab`` is ``ditlab``."""

from ditlab.cli import run

run()
