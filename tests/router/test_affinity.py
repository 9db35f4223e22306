"""Who holds the beginning of a conversation."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tokenplace import defaults
from tokenplace.generation import ChatInput, ChatMessage, GenerateRequest, IdsInput, TextInput, Tool
from tokenplace.router.affinity import KEY_BYTES, Affinity, n_prompt_of

CANARY = "the canary sings at noon"
SYSTEM = ChatMessage("system", "You are terse. " * 40)
HELLO = ChatMessage("user", f"{CANARY}. Hello?")
ANSWER = ChatMessage("assistant", "Yes.")
MORE = ChatMessage("user", "Go on.")
TOOL = Tool("clock", "tells the time", "{}")


def affinity(key: bytes = b"k" * KEY_BYTES) -> Affinity:
    return Affinity(key)


def chat(*messages: ChatMessage, tools: tuple[Tool, ...] = ()) -> GenerateRequest:
    return replace(make_request(), input=ChatInput(messages, tools))


def n_held(known: Affinity, request: GenerateRequest, donor: str = "alice", at: float = 0) -> int:
    return known.n_held(known.prefixes_of(request), donor, "a", at)


def hold(known: Affinity, request: GenerateRequest, donor: str = "alice", at: float = 0) -> None:
    known.note_held(known.prefixes_of(request), donor, "a", at)


def test_a_conversation_that_goes_on_finds_who_has_its_beginning() -> None:
    known = affinity()
    hold(known, chat(SYSTEM, HELLO))
    longer = chat(SYSTEM, HELLO, ANSWER, MORE)
    assert n_held(known, longer) == n_prompt_of(chat(SYSTEM, HELLO).input)
    assert n_held(known, longer, "bob") == 0
    hold(known, longer, "bob")
    assert n_held(known, longer, "bob") == n_prompt_of(longer.input)


def test_another_conversation_shares_only_what_is_the_same() -> None:
    known = affinity()
    hold(known, chat(SYSTEM, HELLO))
    assert n_held(known, chat(SYSTEM, MORE)) == n_prompt_of(chat(SYSTEM).input)
    assert n_held(known, chat(HELLO)) == 0, "the same message, but not at the beginning"


def test_apps_models_and_tools_are_kept_apart() -> None:
    known = affinity()
    request = chat(SYSTEM, HELLO)
    hold(known, request)
    for other in (
        replace(request, cache_scope=b"t" * 16),
        replace(request, model="another"),
        chat(SYSTEM, HELLO, tools=(TOOL,)),
    ):
        assert n_held(known, other) == 0


def test_who_has_lost_it_or_got_it_long_ago_is_not_counted_on() -> None:
    known = affinity()
    request = chat(SYSTEM, HELLO)
    hold(known, request)
    assert n_held(known, request, at=defaults.PREFIX_HELD_S)
    assert not n_held(known, request, at=defaults.PREFIX_HELD_S + 1)
    known.note_lost(known.prefixes_of(request), "alice", "a")
    assert not n_held(known, request)


def test_raw_prompts_are_compared_piece_by_piece() -> None:
    known = affinity()
    text = "once upon a time " * 1000
    prompt = replace(make_request(), input=TextInput(text))
    hold(known, prompt)
    longer = replace(prompt, input=TextInput(text + "there was a donor"))
    assert 0.8 * len(text) / 4 <= n_held(known, longer) <= len(text) / 4
    ids = replace(make_request(), input=IdsInput(tuple(range(2000))))
    hold(known, ids)
    assert n_held(known, replace(ids, input=IdsInput((*range(2000), 7)))) >= 1024
    assert n_held(known, replace(ids, input=IdsInput((9, *range(2000))))) == 0


def test_nothing_of_a_prompt_is_kept_and_another_process_has_other_digests() -> None:
    known = affinity()
    hold(known, chat(SYSTEM, HELLO))
    assert CANARY not in repr(vars(known))
    mine = {prefix.digest for prefix in known.prefixes_of(chat(SYSTEM, HELLO))}
    assert not mine & {p.digest for p in affinity(b"l" * 32).prefixes_of(chat(SYSTEM, HELLO))}


def test_memory_is_bounded() -> None:
    known = affinity()
    for number in range(200):
        turns = [ChatMessage("user", f"{number} {turn}") for turn in range(50)]
        hold(known, chat(*turns))
        for donor in ("alice", "bob", "carol", "dave", "erin", "faye"):
            hold(known, chat(SYSTEM), donor)
    assert len(known) <= defaults.MAX_PREFIXES
    assert not n_held(known, chat(ChatMessage("user", "0 0")))
    assert sum(n_held(known, chat(SYSTEM), d) > 0 for d in ("alice", "bob", "erin", "faye")) == 2


texts = st.lists(st.text(max_size=5), max_size=6)


@given(texts, texts)
def test_as_much_is_held_as_is_alike_at_the_beginning(one: list[str], other: list[str]) -> None:
    def request(texts: list[str]) -> GenerateRequest:
        return chat(*(ChatMessage("user", text * 8) for text in texts))

    known = affinity()
    hold(known, request(one))
    n_alike = 0
    while n_alike < min(len(one), len(other)) and one[n_alike] == other[n_alike]:
        n_alike += 1
    assert n_held(known, request(other)) == n_prompt_of(request(one[:n_alike]).input)
