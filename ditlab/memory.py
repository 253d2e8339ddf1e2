"""Memory of this process: kept for the next step, not given back after every one."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = 2**31 - 1  # bytes: more than is ever free at the end
MAPPED = 2**30  # bytes from which an allocation is a mapping of its own, which the system takes back when it is freed


def keep_memory() -> None:
    """Tell the C library to keep what is freed; to be called where a process begins. Does nothing where it cannot be told.

    A network on a CPU frees its maps and asks for them again with every batch. glibc hands blocks this large back to the
    system, which gives each page anew, filled with zeros: half the time of a convolutional network goes there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    mallopt(M_TRIM_THRESHOLD, NEVER)
    mallopt(M_MMAP_THRESHOLD, MAPPED)
