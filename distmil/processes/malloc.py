"""The memory allocator of this process: how it treats large tensors."""

import ctypes
import platform
import sys

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have freed memory reused instead of returned to the system, and say whether that could be arranged.

    By default glibc maps every large tensor again: each page of it is cleared and faulted in at first touch, in every
    step again. Only Linux with glibc; elsewhere nothing changes.

    Source: mallopt(3).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _TOP_PAD_BYTES))
    answers = [mallopt(parameter, value) for parameter, value in wanted]
    return answers == [1] * len(wanted)
