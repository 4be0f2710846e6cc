"""Memory and processor cores of the machine and of this process."""

import ctypes
import os
import pathlib
import re
import sys


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_bytes() -> int:
    """Size of the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes() -> int:
    """Peak resident memory of this program in bytes (Linux).

    getrusage's ru_maxrss would include the memory of the process that started the program.
    """
    return process_bytes("VmHWM")


def process_bytes(name: str) -> int:
    """A size from /proc/self/status in bytes: "VmRSS" (current) or "VmHWM" (peak)."""
    text = pathlib.Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(kilobytes) * 1024


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks instead of returning them to the kernel.

    XLA allocates temporary arrays anew in every step. With glibc's defaults the page faults take
    20 to 25 % of a CPU step on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # constants of malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_arena_max, 1)
