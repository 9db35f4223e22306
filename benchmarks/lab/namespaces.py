"""Network namespaces, and a TUN device in each. Start at `make_namespaces`.

They have no names: each lives as long as a process has it open or is in it. So nothing is left
behind, however their maker ends, and there is nothing to clean up at the next start.

Differs from `ip netns`: root is not needed where users may make user namespaces. There a process is
the same user as outside, without any privilege of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.lab.router import address

TUN_FILE: Final = Path("/dev/net/tun")
TUN_NAME: Final = b"lab0"
NETMASK: Final = "255.255.255.0"

# Of Linux: sched.h, if_tun.h, sockios.h, if.h.
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_IFF_UP: Final = 0x1
_IFREQ_FLAGS: Final = struct.Struct("16sH22x")
_IFREQ_ADDRESS: Final = struct.Struct("16sHxx4s16x")
_ENDING_ROUNDS: Final = 20  # a process may fork while it is looked at
_QUIET_ROUNDS: Final = 4  # or be about to enter: so long after it was let in nobody is
_ENDING_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Namespace:
    """A host's network, as its maker holds it: file descriptors of the namespace, and of its TUN
    device, which gives the packets that leave the host and takes those that reach it."""

    net_fd: int
    tun_fd: int


def make_namespaces(n_hosts: int) -> list[Namespace]:
    """A network for each of so many hosts. The calling process, which must have one thread, is then
    in a namespace where there is nothing. Raises `OSError` where that is not allowed."""
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        _become_owner()
    namespaces = []
    for host in range(n_hosts):
        _unshare(_CLONE_NEWNET)
        net_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        namespaces.append(Namespace(net_fd, _open_tun()))
        _set_up(b"lo")
        _set_address(TUN_NAME, address(host))
        _set_up(TUN_NAME)
    _unshare(_CLONE_NEWNET)
    return namespaces


def entering(pid: int, net_fd: int) -> list[str]:
    """What is put before a command to run it in a network that the process `pid` holds."""
    user = f"/proc/{pid}/ns/user"
    command = ["nsenter", f"--net=/proc/{pid}/fd/{net_fd}"]
    if os.stat(user).st_ino != os.stat("/proc/self/ns/user").st_ino:
        command += [f"--user={user}", "--preserve-credentials"]
    return [*command, "--"]


def end_inhabitants(namespaces: Sequence[Namespace]) -> None:
    """Kill every process that is in one of these networks."""
    inodes = {os.fstat(namespace.net_fd).st_ino for namespace in namespaces}
    n_quiet = 0
    for _ in range(_ENDING_ROUNDS):
        pids = list(_inhabitants(inodes))
        n_quiet = 0 if pids else n_quiet + 1
        if n_quiet == _QUIET_ROUNDS:
            return
        for pid in pids:
            _kill(pid)
        time.sleep(_ENDING_PAUSE_S)


def _inhabitants(inodes: set[int]) -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        try:
            inode = os.stat(f"/proc/{entry.name}/ns/net").st_ino
        except OSError:  # it has ended, or is somebody else's
            continue
        if inode in inodes:
            yield int(entry.name)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare came with Python 3.12
    if libc.unshare(flags):
        errno = ctypes.get_errno()
        raise OSError(errno, f"unshare: {os.strerror(errno)}")


def _become_owner() -> None:
    """Go into a user namespace of our own, as the same user: networks made there are ours."""
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")  # user_namespaces(7): before a gid is mapped
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _open_tun() -> int:
    tun_fd = os.open(TUN_FILE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun_fd, _TUNSETIFF, _IFREQ_FLAGS.pack(TUN_NAME, _IFF_TUN | _IFF_NO_PI))
    return tun_fd


def _set_address(device: bytes, ip: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for request, value in ((_SIOCSIFADDR, ip), (_SIOCSIFNETMASK, NETMASK)):
            ifreq = _IFREQ_ADDRESS.pack(device, socket.AF_INET, socket.inet_aton(value))
            fcntl.ioctl(any_socket, request, ifreq)


def _set_up(device: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        ifreq = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(device, 0))
        _, flags = _IFREQ_FLAGS.unpack(ifreq)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(device, flags | _IFF_UP))
