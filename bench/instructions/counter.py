"""Requests of a program to the callgrind that runs it: count from here, and say what was counted until here.

These are the requests of ``valgrind/callgrind.h``, whose few instructions do nothing outside of valgrind. They are made here from
their bytes, so that no compiler is needed; on x86-64 only.
"""

from __future__ import annotations

import ctypes
import mmap
import platform

MACHINES = ("x86_64", "amd64")
_CODE = bytes.fromhex(
    "4889f8"  # mov rax, rdi: where the request's six words are
    "4889f2"  # mov rdx, rsi: what is returned outside of valgrind
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi by 3, 13, 61 and 51: by 128 in sum, so nothing changes
    "4887db"  # xchg rbx, rbx
    "4889d0"  # mov rax, rdx
    "c3"
)
_TOOL = ord("C") << 24 | ord("T") << 16
_DUMP_STATS, _ZERO_STATS, _START, _STOP = _TOOL, _TOOL + 1, _TOOL + 4, _TOOL + 5
_RUNNING_ON_VALGRIND = 0x1001


class Counter:
    """``start`` and ``stop`` around what is measured; each ``stop`` writes one file of callgrind's, numbered from 1."""

    def __init__(self) -> None:
        """:raises RuntimeError: valgrind does not run this process, or the machine is another one."""
        if platform.machine().lower() not in MACHINES:
            raise RuntimeError(f"no requests to valgrind are known for {platform.machine()}")
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._call = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong)(address)
        if not self._ask(_RUNNING_ON_VALGRIND):
            raise RuntimeError("valgrind does not run this process")

    def start(self) -> None:
        self._ask(_START)
        self._ask(_ZERO_STATS)

    def stop(self) -> None:
        self._ask(_DUMP_STATS)
        self._ask(_STOP)

    def _ask(self, number: int) -> int:
        words = (ctypes.c_ulong * 6)(number, 0, 0, 0, 0, 0)
        return int(self._call(ctypes.addressof(words), 0))
