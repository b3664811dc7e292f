"Memory on a CPU: what a process frees it keeps for the next batch, as PyTorch does on a GPU."
import ctypes
import os
import sys

__all__ = ['keep_freed_memory', 'hand_back_memory']

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h: what is handed back, and how many blocks are mapped by themselves
CHOSEN = 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_', 'MALLOC_TOP_PAD_', 'GLIBC_TUNABLES'  # see mallopt(3)


def _glibc():
    libc = ctypes.CDLL(None) if sys.platform.startswith('linux') else None
    return libc if hasattr(libc, 'gnu_get_libc_version') else None


def keep_freed_memory()->bool: # Whether this process does so now
    """Let this process keep the memory that it frees, for training on a CPU, until it ends or `hand_back_memory` is called.

    Its peak grows, too, as what it keeps does not always fit what it needs next. glibc hands large blocks back to the system as
    soon as they are freed, and the system clears each page anew when it is touched the next time: with the activations of a video
    net, in each batch (experiments/benchmarks/step.py measures what that costs). Studies do this on a machine without a GPU. Where
    glibc's settings were chosen in the environment, and with another C library, nothing is changed."""
    libc = _glibc()
    return libc is not None and not any(os.environ.get(n) for n in CHOSEN) and bool(libc.mallopt(M_TRIM_THRESHOLD, -1) and libc.mallopt(M_MMAP_MAX, 0))


def hand_back_memory()->None:
    "Give the system what is free now, once: for a process that has trained and waits for others"
    if (libc := _glibc()) is not None: libc.malloc_trim(0)
