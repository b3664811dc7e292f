"Memory on a CPU: a process keeps freed memory for the next batch, as PyTorch does on a GPU."
import ctypes
import os
import sys

__all__ = ['keep_freed_memory', 'hand_back_memory']

# options of mallopt(3): how many free bytes are returned to the system, and how many blocks are mapped separately
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# environment variables that set the same options
CHOSEN = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_', 'MALLOC_TOP_PAD_', 'GLIBC_TUNABLES')


def _glibc():
    "glibc, or `None` where this process has another C library"
    if not sys.platform.startswith('linux'): return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, 'gnu_get_libc_version') else None


def keep_freed_memory()->bool: # Whether this process does so now
    """Keep the memory that this process frees, until the process ends or calls `hand_back_memory`.

    This makes training on a CPU faster. By default glibc returns large blocks, such as the activations of a video
    network, to the system as soon as they are freed, and the system clears every page before it is used again
    (experiments/benchmarks/step.py measures the cost). Peak memory grows, because freed blocks do not always fit the
    next request. Studies call this on machines without a GPU. It does nothing if the user has set glibc's options in
    the environment, or with another C library."""
    libc = _glibc()
    if libc is None or any(os.environ.get(n) for n in CHOSEN): return False
    return bool(libc.mallopt(M_TRIM_THRESHOLD, -1) and libc.mallopt(M_MMAP_MAX, 0))


def hand_back_memory()->None:
    "Return free memory to the system once, for a process that has trained and now waits for others"
    libc = _glibc()
    if libc is not None: libc.malloc_trim(0)
