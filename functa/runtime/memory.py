"""Memory of this machine and of this process, and what the C library does with what XLA has freed."""

import ctypes
import os
import pathlib
import re
import sys


def host_bytes() -> int:
    """Of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes() -> int:
    """The most memory that this program has had at a time, by Linux's account.

    getrusage's ru_maxrss begins with what the process was before it became this program: a copy of its parent.
    """
    return process_bytes("VmHWM")


def process_bytes(name: str) -> int:
    """A line of Linux's /proc/self/status: VmRSS (now) or VmHWM (most)."""
    text = pathlib.Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(kilobytes) * 1024


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
