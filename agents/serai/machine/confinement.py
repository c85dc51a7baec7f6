"""What a guest process gives up before it runs guest code: privileges, network, other processes.

A seccomp filter (Linux: Documentation/userspace-api/seccomp_filter.rst) answers the refused system calls with
EPERM. It needs no privilege, because the process has renounced new ones first.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_NAME = 15
_SECCOMP_MODE_FILTER = 2

_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_KILL = 0x8000_0000
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE = 0, 4

_X32_BIT = 0x4000_0000
"""System calls of the x32 ABI carry this bit and would slip past the numbers below."""

_ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41,
            "connect": 42,
            "bind": 49,
            "fork": 57,
            "vfork": 58,
            "execve": 59,
            "kill": 62,
            "ptrace": 101,
            "setns": 308,
            "unshare": 272,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "perf_event_open": 298,
            "bpf": 321,
            "execveat": 322,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
            "pidfd_getfd": 438,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "unshare": 97,
            "ptrace": 117,
            "kill": 129,
            "socket": 198,
            "bind": 200,
            "connect": 203,
            "execve": 221,
            "perf_event_open": 241,
            "setns": 268,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "bpf": 280,
            "execveat": 281,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
            "pidfd_getfd": 438,
        },
    ),
}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def confine(name: str) -> None:
    """Renounce new privileges, install the filter, and show `name` in process lists. Cannot be undone.

    Raises OSError when the kernel refuses. On other architectures than x86-64 and AArch64 no filter is set.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _control(libc, _PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))
    _control(libc, _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    code = _filter(platform.machine())
    if code:
        buffer = ctypes.create_string_buffer(code, len(code))
        program = _Program(len(code) // 8, ctypes.addressof(buffer))
        _control(libc, _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program))


def _control(libc: ctypes.CDLL, option: int, *arguments: object) -> None:
    padding = [ctypes.c_ulong(0)] * (4 - len(arguments))
    if libc.prctl(ctypes.c_int(option), *arguments, *padding) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl option {option}: {os.strerror(error)}")


def _filter(machine: str) -> bytes:
    """The classic BPF program for an architecture; empty when it is unknown."""
    if machine not in _ARCHITECTURES:
        return b""
    architecture, calls = _ARCHITECTURES[machine]
    numbers = sorted(calls.values())
    instructions = [
        (_LOAD_WORD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD_WORD, 0, 0, _OFFSET_NUMBER),
        (_JUMP_AT_LEAST, len(numbers) + 1, 0, _X32_BIT),
    ]
    instructions += [
        (_JUMP_EQUAL, len(numbers) - position, 0, number) for position, number in enumerate(numbers)
    ]
    instructions += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
