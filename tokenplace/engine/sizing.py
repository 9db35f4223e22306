"""How large a context a model gets, and for how many at once. Start at `size_context`. Pure.

Differs from llama.cpp's server, where `-c` is shared by all slots: `n_ctx` is what one sequence may
have. If the memory allows it each slot has its own part of the cache, which is faster; otherwise
all slots share a pool of cells, and only as many run together as their answers leave room for.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace import defaults

_PADDING = 256  # llama.cpp rounds each sequence's context up to a multiple of this


class NoRoom(Exception):
    """Not even one sequence fits; `str()` says what was asked for and what there is."""


@dataclass(frozen=True, slots=True)
class ContextSize:
    """n_ctx: ids of one sequence. n_slots: sequences kept. n_running: at a time. n_cells: the
    cache's room in tokens. is_shared: one pool of cells for all slots, or a part for each.
    """

    n_ctx: int
    n_slots: int
    n_running: int
    n_cells: int
    is_shared: bool


def size_context(
    *,
    n_ctx_train: int,
    wanted_n_ctx: int | None,
    wanted_slots: int | None,
    bytes_per_token: int,
    kv_bytes: int,
) -> ContextSize:
    """What fits into `kv_bytes` of memory.

    n_ctx_train: what the model was trained for, 0 if unknown; nobody gets more. wanted_n_ctx,
    wanted_slots: as a person asked; None: what the defaults and the memory allow. Raises `NoRoom`.
    """
    n_ctx = min(wanted_n_ctx or defaults.DEFAULT_N_CTX, n_ctx_train or defaults.MAX_N_CTX)
    n_running = min(wanted_slots or defaults.DEFAULT_SLOTS, defaults.MAX_SLOTS)
    affordable = kv_bytes // max(1, bytes_per_token)
    if affordable < n_ctx:
        if wanted_n_ctx is not None or affordable < min(defaults.MIN_N_CTX, n_ctx):
            raise NoRoom(
                f"a context of {n_ctx} tokens takes {_mb(n_ctx * bytes_per_token)}, "
                f"there are {_mb(kv_bytes)} for it"
            )
        n_ctx = affordable
    padded = -(-n_ctx // _PADDING) * _PADDING
    if padded * n_running <= affordable:
        return ContextSize(n_ctx, n_running, n_running, n_ctx * n_running, is_shared=False)
    # Idle prefixes cost nothing here but cells, so there may be more of them than run.
    n_slots = min(n_running * defaults.SHARED_SLOTS_FACTOR, defaults.MAX_SLOTS)
    return ContextSize(n_ctx, n_slots, n_running, affordable, is_shared=True)


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.0f} MB"
