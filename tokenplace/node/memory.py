"""How the memory given for donated models is divided among them. Start at `share_memory`. Pure but
for `machine_bytes`.

Differs from llama.cpp's own fitting: it knows the budget of one model on a GPU; here several models
share the memory of a machine that its owner uses too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenplace import defaults
from tokenplace.models.gguf_info import GgufFacts

_PADDING: Final = 256  # llama.cpp rounds each sequence's context up to a multiple of this
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Need:
    """What one model takes, in bytes: fixed for weights and working memory, the rest for the KV
    cache: at least for one request at a time, at most for all that may run.
    """

    fixed_bytes: int
    least_kv_bytes: int
    most_kv_bytes: int

    @property
    def least_bytes(self) -> int:
        return self.fixed_bytes + self.least_kv_bytes


@dataclass(frozen=True, slots=True)
class Share:
    """What one model gets: for its KV cache, and in all."""

    kv_bytes: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Shares:
    """by_model: nothing for a model that is too large even alone. n_together: how many are loaded
    at the same time at the most; fewer than there are take turns.
    """

    by_model: Mapping[str, Share]
    n_together: int


def need_of(facts: GgufFacts, *, n_ctx: int | None, n_slots: int | None, kv_type: str) -> Need:
    """An estimate, rather too high than too low. n_ctx, n_slots: as a person asked, or None."""
    trained = facts.n_ctx_train or defaults.MAX_N_CTX
    most_ctx = min(n_ctx or defaults.DEFAULT_N_CTX, trained)
    # Who asked for a context gets it or nothing; otherwise a short one is better than none.
    least_ctx = most_ctx if n_ctx else min(defaults.MIN_N_CTX, trained)
    token_bytes = facts.kv_bytes_per_token(kv_type)
    working = defaults.WORKER_OVERHEAD_BYTES + facts.n_vocab * defaults.OVERHEAD_BYTES_PER_WORD
    return Need(
        fixed_bytes=facts.size_bytes + working,
        least_kv_bytes=_padded(least_ctx) * token_bytes,
        most_kv_bytes=_padded(most_ctx) * token_bytes * (n_slots or defaults.DEFAULT_SLOTS),
    )


def share_memory(needs: Mapping[str, Need], budget_bytes: int) -> Shares:
    """Divide the budget: all models together if they fit, each KV cache as large as the others' as
    far as that is of use; otherwise those that fit together, and the rest by turns.
    """
    possible = {name: need for name, need in needs.items() if need.least_bytes <= budget_bytes}
    together: list[Need] = []
    for need in sorted(possible.values(), key=lambda need: need.least_bytes):
        if sum(other.least_bytes for other in together) + need.least_bytes > budget_bytes:
            break
        together.append(need)
    grant = _largest_grant(together, budget_bytes)
    by_model = {}
    for name, need in possible.items():
        kv_bytes = min(_kv_bytes(need, grant), budget_bytes - need.fixed_bytes)
        by_model[name] = Share(kv_bytes, need.fixed_bytes + kv_bytes)
    return Shares(by_model, len(together))


def _largest_grant(needs: Sequence[Need], budget_bytes: int) -> int:
    """The most that each KV cache may have, if all of these are loaded. By halving."""
    low, high = 0, max((need.most_kv_bytes for need in needs), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(need.fixed_bytes + _kv_bytes(need, middle) for need in needs) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _kv_bytes(need: Need, grant: int) -> int:
    return max(need.least_kv_bytes, min(grant, need.most_kv_bytes))


def _padded(n_ctx: int) -> int:
    return -(-n_ctx // _PADDING) * _PADDING


def machine_bytes(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """The memory of this machine, or of the container this runs in, in bytes."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(installed, int(cgroup_limit.read_text("ascii")))
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return installed
