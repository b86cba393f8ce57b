"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20
"""Bytes of the largest piece that is kept: glibc takes no more."""
KEPT = 256 << 20
"""Bytes at the end of the heap that are not given back."""


def keep_freed() -> None:
    """Let glibc keep large pieces. It gives them back otherwise, and the next step pays a fault for each page of them.

    88 M parameters on two cores: 512 tokens of prompts take 118 ms instead of 145. Does nothing where there is no glibc.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, LARGEST)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """Let glibc give back what it has kept, for nothing is computed for a while. Does nothing where there is no glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
