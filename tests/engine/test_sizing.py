"""How large a context a model gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.engine.sizing import ContextSize, NoRoom, size_context

PER_TOKEN = 1000


def size(
    kv_bytes: int, n_ctx: int | None = None, slots: int | None = None, trained: int = 8192
) -> ContextSize:
    return size_context(
        n_ctx_train=trained,
        wanted_n_ctx=n_ctx,
        wanted_slots=slots,
        bytes_per_token=PER_TOKEN,
        kv_bytes=kv_bytes,
    )


def test_with_memory_each_slot_has_its_own_part() -> None:
    assert size(1 << 30, 1024, 4) == ContextSize(1024, 4, 4, 4096, is_shared=False)


def test_without_it_all_share_a_pool() -> None:
    got = size(3000 * PER_TOKEN, 1024, 4)
    assert got == ContextSize(1024, 4 * defaults.SHARED_SLOTS_FACTOR, 4, 3000, is_shared=True)


def test_nobody_gets_more_context_than_the_model_was_trained_for() -> None:
    assert size(1 << 40, 4096, trained=2048).n_ctx == 2048
    assert size(1 << 40, trained=0).n_ctx == defaults.DEFAULT_N_CTX


def test_a_default_context_shrinks_to_the_memory() -> None:
    assert size(1000 * PER_TOKEN).n_ctx == 1000


@pytest.mark.parametrize(("kv_bytes", "n_ctx"), [(1000 * PER_TOKEN, 2048), (100 * PER_TOKEN, None)])
def test_what_does_not_fit_is_refused_with_both_numbers(kv_bytes: int, n_ctx: int | None) -> None:
    with pytest.raises(NoRoom, match=r"takes \d+ MB, there are \d+ MB"):
        size(kv_bytes, n_ctx)


@given(
    st.integers(1, 1 << 36),
    st.one_of(st.none(), st.integers(1, 1 << 20)),
    st.one_of(st.none(), st.integers(1, 500)),
    st.integers(0, 1 << 20),
)
def test_any_size_keeps_to_the_memory(
    kv_bytes: int, n_ctx: int | None, slots: int | None, trained: int
) -> None:
    try:
        got = size(kv_bytes, n_ctx, slots, trained)
    except NoRoom:
        return
    assert got.n_cells * PER_TOKEN <= kv_bytes
    assert 1 <= got.n_running <= got.n_slots <= defaults.MAX_SLOTS
    assert got.n_ctx <= got.n_cells
    assert got.is_shared or got.n_cells == got.n_ctx * got.n_slots
