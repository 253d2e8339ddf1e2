"""The one thread in which networks run.

PyTorch spreads an operation on a CPU over worker threads that belong to the calling thread. With a second calling thread
there are more workers than cores, and every operation waits for the system to schedule them: a request then takes two
and a half times as long (measured with benchmarks/serving.py).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_EXECUTOR = ThreadPoolExecutor(1, "compute")


def run_on_compute_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in the compute thread, after the calls submitted earlier, and return its result.

    Must not be called from the compute thread itself: it would wait for its own end.
    """
    return submit_to_compute_thread(function, *args, **kwargs).result()


def submit_to_compute_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Call a function in the compute thread without waiting for it; may be called from the compute thread."""
    return _EXECUTOR.submit(function, *args, **kwargs)
