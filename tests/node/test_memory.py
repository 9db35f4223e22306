"""How the memory for donated models is divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.gguf_files import FACTS
from tokenplace import defaults
from tokenplace.node.memory import Need, Share, machine_bytes, need_of, share_memory

MB = 1 << 20
TINY = replace(FACTS, n_ctx_train=8192, kv_values=11_520, n_vocab=49_152, size_bytes=98 * MB)
TOKEN_BYTES = 2 * 11_520
SMALL = Need(100 * MB, 10 * MB, 400 * MB)
LARGE = Need(700 * MB, 50 * MB, 100 * MB)

needs_of_models = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.builds(
        lambda fixed, least, more: Need(fixed, least, least + more),
        *(st.integers(0, 1000) for _ in range(3)),
    ),
    max_size=6,
)


# ---------------------------------------------------------------- what one model needs


def test_a_model_needs_its_file_its_cache_and_room_to_work() -> None:
    need = need_of(TINY, n_ctx=None, n_slots=None, kv_type="f16")
    assert need.fixed_bytes > TINY.size_bytes + defaults.WORKER_OVERHEAD_BYTES
    assert need.least_kv_bytes == defaults.MIN_N_CTX * TOKEN_BYTES
    assert need.most_kv_bytes == defaults.DEFAULT_SLOTS * defaults.DEFAULT_N_CTX * TOKEN_BYTES


def test_who_asks_for_a_context_gets_it_or_nothing() -> None:
    need = need_of(TINY, n_ctx=2000, n_slots=3, kv_type="f16")
    assert need.least_kv_bytes == 2048 * TOKEN_BYTES, "as llama.cpp rounds it"
    assert need.most_kv_bytes == 3 * need.least_kv_bytes


def test_nobody_gets_more_context_than_the_model_was_trained_for() -> None:
    need = need_of(replace(TINY, n_ctx_train=512), n_ctx=9999, n_slots=1, kv_type="f16")
    assert need.least_kv_bytes == need.most_kv_bytes == 512 * TOKEN_BYTES
    untold = need_of(replace(TINY, n_ctx_train=0), n_ctx=9999, n_slots=1, kv_type="f16")
    assert untold.least_kv_bytes > 9999 * TOKEN_BYTES


def test_a_smaller_type_makes_a_smaller_cache() -> None:
    f16, q8_0 = (
        need_of(TINY, n_ctx=None, n_slots=None, kv_type=kv_type) for kv_type in ("f16", "q8_0")
    )
    assert q8_0.most_kv_bytes == f16.most_kv_bytes * 34 // 64
    assert q8_0.fixed_bytes == f16.fixed_bytes


# ---------------------------------------------------------------- who gets what


def test_with_plenty_everybody_gets_the_most() -> None:
    shares = share_memory({"small": SMALL, "large": LARGE}, 5000 * MB)
    assert shares.n_together == 2
    assert shares.by_model == {
        "small": Share(400 * MB, 500 * MB),
        "large": Share(100 * MB, 800 * MB),
    }


def test_what_is_scarce_is_shared_equally() -> None:
    shares = share_memory({"small": SMALL, "large": LARGE}, 940 * MB)
    assert shares.n_together == 2
    assert shares.by_model["small"].kv_bytes == shares.by_model["large"].kv_bytes == 70 * MB


def test_models_that_do_not_fit_together_take_turns() -> None:
    shares = share_memory({"small": SMALL, "large": LARGE}, 800 * MB)
    assert shares.n_together == 1
    assert shares.by_model["small"] == Share(400 * MB, 500 * MB)
    assert shares.by_model["large"] == Share(100 * MB, 800 * MB)


def test_a_model_that_is_too_large_alone_gets_nothing() -> None:
    shares = share_memory({"small": SMALL, "large": LARGE}, 749 * MB)
    assert shares.by_model.keys() == {"small"}
    assert share_memory({"large": LARGE}, 750 * MB).by_model["large"].kv_bytes == 50 * MB
    assert share_memory({}, 0).by_model == {}


@given(needs_of_models, st.integers(0, 6000))
def test_shares_keep_the_budget(needs: dict[str, Need], budget: int) -> None:
    shares = share_memory(needs, budget)
    for name, need in needs.items():
        share = shares.by_model.get(name)
        assert (share is not None) == (need.least_bytes <= budget)
        if share is not None:
            assert need.least_kv_bytes <= share.kv_bytes <= need.most_kv_bytes
            assert need.fixed_bytes + share.kv_bytes == share.n_bytes <= budget
    sizes = sorted(share.n_bytes for share in shares.by_model.values())
    if shares.n_together == len(sizes):
        assert sum(sizes) <= budget
    else:
        assert 1 <= shares.n_together < len(sizes)


@given(needs_of_models, st.integers(0, 6000))
def test_more_memory_takes_nothing_from_models_that_fit_together(
    needs: dict[str, Need], budget: int
) -> None:
    before, after = share_memory(needs, budget), share_memory(needs, budget + 100)
    if before.n_together == len(needs):
        assert after.n_together == len(needs)
        for name, share in before.by_model.items():
            assert after.by_model[name].kv_bytes >= share.kv_bytes


# ---------------------------------------------------------------- this machine


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    installed = machine_bytes(tmp_path / "absent")
    assert installed > 100 * MB
    limit = tmp_path / "memory.max"
    for content, expected in (
        ("max\n", installed),
        (f"{64 * MB}\n", 64 * MB),
        (f"{installed * 2}\n", installed),
        ("", installed),
    ):
        limit.write_text(content)
        assert machine_bytes(limit) == expected


@pytest.mark.parametrize("budget", [0, 1])
def test_without_memory_nobody_gets_anything(budget: int) -> None:
    assert share_memory({"small": SMALL}, budget).n_together == 0
