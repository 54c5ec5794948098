"""Memory of the CPU backend: kept between steps instead of asked of the kernel anew.

XLA's CPU backend takes every large array from malloc and frees it at the end of the program that used it. glibc gives
each of them back to the kernel at once, which must then clear and map the pages again in the next step: a fifth of the
time of a small model's training step. The settings below keep what was freed, so that a step meets no page fault, and
let the heap have pages of 2 MiB, which saves another twentieth. A process then holds what it held at its peak.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h; mallopt(3)
MADV_HUGEPAGE = 14  # sys/mman.h; madvise(2)
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")  # "2": whatever is reserved counts as if it were used


def keep_freed_memory() -> bool:
    """Has malloc keep what is freed; call it before JAX's first use. Returns whether it does: only glibc can.

    Threads that are there already, such as those of a JAX that is running, continue as before. Where the user has set
    up malloc by MALLOC_... or GLIBC_TUNABLES, nothing is changed.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # One heap for all threads: the small heaps that glibc makes for each cannot hold large arrays.
    settings = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**26}
    kept = all(libc.mallopt(name, value) for name, value in settings.items())
    if kept and OVERCOMMIT.read_text().strip() != "2":
        _ask_for_large_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return kept


def _ask_for_large_pages(libc: ctypes.CDLL, size: int) -> None:
    """Lets the heap reach over `size` more bytes of addresses, none of which is backed before it is used."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block is None:  # a limit on addresses (ulimit -v): pages stay as small as they are
        return
    page = os.sysconf("SC_PAGE_SIZE")
    start = -(-block // page) * page
    libc.madvise(start, size - page, MADV_HUGEPAGE)  # where the kernel refuses, pages stay as small as they are
    libc.free(block)
