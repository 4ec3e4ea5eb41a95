"""What the reading child may not do: use much memory, time or disk, reach a network, start a program.

Set before the first foreign byte is read; a reader that is taken over can then only end itself.
"""

import contextlib
import ctypes
import platform
import resource
import struct
import sys
from typing import Any

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
# Audit number of the architecture, then
# socket, connect, bind, execve, execveat, ptrace, process_vm_readv, io_uring_setup.
_CALLS = {
    "x86_64": (0xC000003E, (41, 42, 49, 59, 322, 101, 310, 425)),
    "aarch64": (0xC00000B7, (198, 203, 200, 221, 281, 117, 270, 425)),
}
_FORBIDDEN_EVENTS = ("socket.__new__", "socket.connect", "subprocess.Popen", "os.exec", "os.system", "os.posix_spawn")


def limit(memory_bytes: int, cpu_s: int, file_bytes: int) -> None:
    """Bounds of address space, processor time, size of each written file, no core dump."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tighten(memory_bytes: int, cpu_s: int) -> None:
    """Lower bounds for a kind of file that needs less; earlier ones stay where they are lower."""
    for kind, wanted in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s)):
        soft, hard = resource.getrlimit(kind)
        value = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, hard))


def shut_in() -> bool:
    """No network and no programs from here on, by the kernel where it can; whether the kernel does it.

    Python's own calls are refused everywhere.
    """
    sys.addaudithook(_refuse)
    return _filter()


def _refuse(event: str, _arguments: Any) -> None:
    if event in _FORBIDDEN_EVENTS:
        raise PermissionError(f"{event} is not for readers")


def _filter() -> bool:
    """A seccomp filter (Linux) that answers EPERM to the calls above."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return False
    audit, calls = _CALLS[platform.machine()]

    def step(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    load, equal, end = 0x20, 0x15, 0x06
    steps = [step(load, 0, 0, 4), step(equal, 1, 0, audit), step(end, 0, 0, _REFUSE), step(load, 0, 0, 0)]
    for place, number in enumerate(calls):
        steps.append(step(equal, len(calls) - place, 0, number))
    steps += [step(end, 0, 0, _ALLOW), step(end, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(steps))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

    program = Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
