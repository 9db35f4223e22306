"""What a helper process may take of the machine. Start at `limit_process`."""

from __future__ import annotations

import resource
from typing import Final

_FILE_BYTES: Final = 0  # a helper writes no files


def limit_process(memory_bytes: int) -> None:
    """Bound this process's address space, and let it write no file."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))


def allow_cpu(seconds: float) -> None:
    """Allow so much processor time from now on, rounded up; over it, the process dies.

    For when the parent is too busy to look at its clock.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
