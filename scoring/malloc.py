"""glibc's allocator, set to keep freed memory: a batch's tensors are as large as those of the batch before."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAX_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Do not give freed tensors back to the system, which would hand them out again page by page, zeroed.

    On a CPU that is a tenth to a seventh of the time of a full-size batch, for 0.1-0.2 GB more at the peak. Returns whether
    it was done: only glibc can, and settings in the environment are left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MAX_INT) and mallopt(M_TRIM_THRESHOLD, MAX_INT))
