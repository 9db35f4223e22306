"""Takes from this process what it no longer needs of the system. Start at `refuse_calls`.

Linux only, in two layers that do not know of each other. Nothing here can be undone, and threads
and programs started later inherit it.

- seccomp (kernel 3.17, x86_64 and aarch64): system calls that are not on a short list fail.
- Landlock (kernel 5.13, every processor): no file can be opened, no TCP port reached.

Differs from what service managers and containers do: it begins when the model is loaded and all
modules are imported, so the list is that of a program that computes, with no `open` at all. User
and network namespaces are left out: beside a list without `socket` they would add nothing, many
systems forbid them, and entering one switches the parent-death signal off.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Any, Final, NamedTuple


class _Call(NamedTuple):
    """The number of a system call on each processor; None: it has none."""

    x86_64: int | None
    aarch64: int | None


# aarch64's numbers are those of the kernel's asm-generic/unistd.h. The most frequent come first.
_COMPUTING: Final = (
    _Call(202, 98),  # futex
    _Call(24, 124),  # sched_yield
    # What is open already: the pipe to the parent, which is the only socket and is connected.
    *(_Call(0, 63), _Call(1, 64)),  # read, write
    *(_Call(19, 65), _Call(20, 66)),  # readv, writev
    *(_Call(17, 67), _Call(8, 62), _Call(5, 80), _Call(3, 57)),  # pread64, lseek, fstat, close
    *(_Call(7, None), _Call(271, 73)),  # poll, ppoll
    *(_Call(45, 207), _Call(44, 206)),  # recvfrom, sendto
    # Memory.
    *(_Call(9, 222), _Call(11, 215), _Call(25, 216)),  # mmap, munmap, mremap
    *(_Call(10, 226), _Call(28, 233), _Call(12, 214)),  # mprotect, madvise, brk
    # Threads, and the process itself.
    *(_Call(273, 99), _Call(334, 293), _Call(218, 96)),  # set_robust_list, rseq, set_tid_address
    *(_Call(186, 178), _Call(39, 172), _Call(110, 173)),  # gettid, getpid, getppid
    *(_Call(309, 168), _Call(324, 283), _Call(204, 123)),  # getcpu, membarrier, sched_getaffinity
    _Call(203, 122),  # sched_setaffinity: where OMP_PROC_BIND is set, no thread starts without it
    *(_Call(60, 93), _Call(231, 94)),  # exit, exit_group
    *(_Call(13, 134), _Call(14, 135)),  # rt_sigaction, rt_sigprocmask
    *(_Call(15, 139), _Call(131, 132)),  # rt_sigreturn, sigaltstack
    # Time, chance, and counters of its own use.
    *(_Call(228, 113), _Call(229, 114), _Call(96, 169)),  # clock_gettime, -getres, gettimeofday
    *(_Call(230, 115), _Call(35, 101), _Call(219, 128)),  # clock_nanosleep, nanosleep, restart_
    *(_Call(318, 278), _Call(98, 165)),  # getrandom, getrusage
)
_CLONE: Final = _Call(56, 220)  # for threads; not for processes
_CLONE3: Final = _Call(435, 435)
_TGKILL: Final = _Call(234, 131)  # of this process only: how `abort` ends it
_PRLIMIT64: Final = _Call(302, 261)  # of this process only

# Where drivers of a GPU must go on opening devices and files, only these are refused.
_NEVER: Final = (
    *(_Call(41, 198), _Call(425, 425)),  # socket, io_uring_setup
    *(_Call(59, 221), _Call(322, 281)),  # execve, execveat
    *(_Call(101, 117), _Call(310, 270), _Call(311, 271)),  # ptrace, process_vm_readv, -writev
)

_SECCOMP: Final = _Call(317, 277)
_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1  # threads that exist already, too
# Without it kernels before 5.16 switch the processor's store bypass off, which costs speed and
# guards against what nobody tries here.
_FLAG_SPEC_ALLOW: Final = 4
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000  # x86_64's numbers once more, for programs with short pointers
_CLONE_THREAD: Final = 0x00010000
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
_AT_NUMBER, _AT_ARCH, _AT_ARGS = 0, 4, 16  # in struct seccomp_data

Instruction = tuple[int, int, int, int]
"""Of classic BPF: code, where to go if so and if not (relative), operand."""

_PR_SET_NO_NEW_PRIVS: Final = 38
_LANDLOCK_CREATE_RULESET: Final = 444  # the same number on every processor
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_VERSION: Final = 1


def refuse_privileges() -> None:
    """Nothing that this process starts may gain rights, by set-uid files for instance. seccomp and
    Landlock ask for it.
    """
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def refuse_calls(*, has_gpu: bool) -> bool:
    """System calls that computing does not need fail with EPERM, in every thread. False where this
    cannot be. has_gpu: only the few that a model never needs.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _AUDIT_ARCH:
        return False
    program = filter_program(machine, os.getpid(), has_gpu=has_gpu)
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in program))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    argument = ctypes.byref(Program(len(program), ctypes.addressof(code)))
    number = getattr(_SECCOMP, machine)
    return any(
        _libc().syscall(number, _SET_MODE_FILTER, flags, argument) == 0
        for flags in (_FLAG_TSYNC | _FLAG_SPEC_ALLOW, _FLAG_TSYNC)  # the former since 4.17
    )


def refuse_files() -> bool:
    """No file can be opened, and no TCP port reached, by this thread and those it starts. False
    where the kernel has no Landlock.
    """
    if sys.platform != "linux":
        return False
    libc = _libc()
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    # struct landlock_ruleset_attr: rights over files, over TCP, and reach to other processes. What
    # is named and not granted by a rule is refused, and there is no rule.
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    attributes = [(1 << rights) - 1]
    if version >= 4:
        attributes.append(0b11)  # bind, connect
    if version >= 6:
        attributes.append(0b11)  # abstract sockets, signals
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, packed, len(packed), 0)
    if ruleset < 0:
        return False
    is_in_force: bool = libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return is_in_force


def filter_program(machine: str, pid: int, *, has_gpu: bool) -> list[Instruction]:
    """What the kernel runs at every system call. Pure. See seccomp(2)."""
    program = [
        _load(_AT_ARCH),
        _jump_if_equal(_AUDIT_ARCH[machine], 1, 0),
        _refuse(errno.EPERM),  # 32-bit calls have other numbers
        _load(_AT_NUMBER),
    ]
    if machine == "x86_64":
        program += [(0x35, 0, 1, _X32_BIT), _refuse(errno.EPERM)]  # if not below

    def when(call: _Call, then: list[Instruction]) -> None:
        number = getattr(call, machine)
        if number is not None:
            program.extend([_jump_if_equal(number, 0, len(then)), *then])

    if has_gpu:
        for call in _NEVER:
            when(call, [_refuse(errno.EPERM)])
        return [*program, _allow()]
    for call in _COMPUTING:
        when(call, [_allow()])
    either = [_allow(), _refuse(errno.EPERM)]
    when(_CLONE, [_load(_AT_ARGS), (0x45, 0, 1, _CLONE_THREAD), *either])  # if any of these bits
    when(_TGKILL, [_load(_AT_ARGS), _jump_if_equal(pid, 0, 1), *either])
    when(_PRLIMIT64, [_load(_AT_ARGS), _jump_if_equal(0, 0, 1), *either])
    # Its flags are in memory, out of a filter's sight; told that it does not exist, libraries use
    # `clone`.
    when(_CLONE3, [_refuse(errno.ENOSYS)])
    return [*program, _refuse(errno.EPERM)]


def _load(offset: int) -> Instruction:
    return (0x20, 0, 0, offset)


def _jump_if_equal(value: int, if_so: int, if_not: int) -> Instruction:
    return (0x15, if_so, if_not, value)


def _allow() -> Instruction:
    return (0x06, 0, 0, _RET_ALLOW)


def _refuse(number: int) -> Instruction:
    return (0x06, 0, 0, _RET_ERRNO | number)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
