"""What the C library does with memory that XLA has freed."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Tells glibc not to hand large freed blocks back to the kernel.

    XLA allocates the temporaries of a step anew each time. By default each of their pages is then
    a page fault: a fifth to a quarter of the time of a CPU step, measured on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # of malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_arena_max, 1)
