"""The one thread in which networks are run.

PyTorch's operations on a CPU are spread over threads that belong to the thread that called them. As soon as a second thread
has called some, there are more of them than cores, and every operation waits for the system to wake its helpers: a
request took two and a half times as long (benchmarks/serving.py found it).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD = ThreadPoolExecutor(1, "compute")


def computed(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function in that thread, after what was asked for before, and wait for it; not from within such a call."""
    return _THREAD.submit(function, *arguments, **named).result()
