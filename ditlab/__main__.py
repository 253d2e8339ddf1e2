"""``python -m ditlab`` is ``ditlab``."""

from ditlab.cli.main import run

run()
