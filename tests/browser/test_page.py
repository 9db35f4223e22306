"""The page in a real browser. Start at `test_an_answer_streams_sealed`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.api_shim.serving import TINY_MODEL, ScriptedGenerator, wait_until
from tests.browser.chromium import Browser
from tests.browser.page_lab import ALIAS, Chatting, Offers, one, quoted, serve_page, shown
from tests.fakes import EchoEngine
from tokenplace.api_shim.access import Access, ApiKeys
from tokenplace.errors import ConnectionLost, NoDonorForModel
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    Timings,
    Tokens,
    Usage,
)

DONOR = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
WITHOUT_CRYPTO = "Object.defineProperty(Crypto.prototype, 'subtle', { value: undefined })"


def script(*pieces: str, stop: Any = None) -> list[Event]:
    """The events of an answer in these pieces."""
    return [
        Accepted(bytes(32), 21, 0, 4096, 256, "tp/1", 10, 0, donor=DONOR),
        *(Tokens(0, i, (i,), (piece.encode(),)) for i, piece in enumerate(pieces)),
        Finished(
            (ChoiceEnd(0, stop or EogStop(2)),),
            Usage(21, 0, len(pieces)),
            Timings(0, 1, len(pieces)),
        ),
    ]


def said(request: GenerateRequest) -> list[tuple[str, str]]:
    assert isinstance(request.input, ChatInput)
    return [(message.role, message.content) for message in request.input.messages]


async def test_it_loads_and_asks_nobody_else(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
        assert await chat.page.text("h1") == "Welcome to token.place!"
        assert await chat.page.text("#network") == "1 model is offered now"
        assert f"{peer.address}/v1" in await chat.page.text("#api")
        await chat.ask("Hello, donors!")
        assert await chat.answer() == "Hello, donors!"
        assert {url for url in chat.page.requests if not url.startswith(f"{peer.address}/")} == {
            url for url in chat.page.requests if url.startswith("data:image/svg+xml,")
        }
        assert len(chat.page.requests) > 8
        assert chat.page.console == []
        assert chat.page.failures == []


async def test_an_answer_streams_sealed(browser: Browser) -> None:
    gate = trio.Event()
    donor = ScriptedGenerator(script("Rayleigh ", "scattering."), {2: gate})
    async with serve_page(donor) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Why is the sky blue?")
        await chat.wait_in_answer("Rayleigh")
        assert await chat.page.evaluate(f"{one('#send')}.hidden")
        gate.set()
        assert await chat.answer() == "Rayleigh scattering."
        assert f"…{DONOR[-6:]}" in await chat.latest(".who")
        assert DONOR in await chat.page.evaluate(f"{one('.who')}.title")
        facts = await chat.latest(".facts")
        assert "first token after " in facts
        assert " tokens/s" in facts
        assert "2 tokens" in facts
        (body,) = chat.page.bodies
        assert json.loads(body)["encrypted"] is True
        assert "sky" not in body
        assert await chat.page.evaluate(f"document.activeElement === {one('#prompt')}")


async def test_the_conversation_grows_until_a_new_one(browser: Browser) -> None:
    engine = EchoEngine()
    async with serve_page(engine) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.page.click(".system summary")
        await chat.page.click("#system")
        await chat.page.write("Be brief.")
        await chat.ask("First")
        await chat.answer()
        await chat.ask("Second")
        await chat.answer()
        system = ("system", "Be brief.")
        first = [("user", "First"), ("assistant", "First")]
        assert said(engine.requests[-1]) == [system, *first, ("user", "Second")]
        await chat.page.click("#new-chat")
        assert await chat.page.evaluate("document.querySelectorAll('.turn').length") == 0
        await chat.ask("Third")
        await chat.answer()
        assert said(engine.requests[-1]) == [system, ("user", "Third")]


async def test_stop_ends_the_donors_work(browser: Browser) -> None:
    engine = EchoEngine(token_interval_s=0.02)
    async with serve_page(engine) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("A long tale. " * 500)
        await chat.wait_in_answer("A long")
        await chat.page.click("#stop")
        await wait_until(lambda: engine.n_running == 0)
        assert engine.n_cancelled == 1
        assert (await chat.answer()).startswith("A long")
        assert "stopped" in await chat.latest(".facts")
        assert await chat.page.text("#announce") == "Stopped."
        await chat.ask("On!")
        assert await chat.answer() == "On!"
        # What had come counts as said; models expect roles to take turns.
        assert [role for role, _ in said(engine.requests[-1])] == ["user", "assistant", "user"]


async def test_a_refusal_is_shown_and_asked_again(browser: Browser) -> None:
    engine = EchoEngine(fail_after=0, error=NoDonorForModel(hint="Ask somebody to donate it."))
    async with serve_page(engine) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Hello?")
        await chat.answer()
        assert "Ask somebody to donate it." in await chat.latest(".problem")
        assert "Ask somebody" in await chat.page.text("#announce")
        engine.fail_after = None
        await chat.page.click(".again")
        assert await chat.answer() == "Hello?"
        assert await chat.latest(".problem") == ""


async def test_an_answer_that_breaks_off_says_so(browser: Browser) -> None:
    donor = ScriptedGenerator(script("Half an ", "answer")[:-1], error=ConnectionLost())
    async with serve_page(donor) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Go on")
        assert await chat.answer() == "Half an answer"
        assert await chat.latest(".problem") == ConnectionLost().user_text


async def test_a_peer_that_is_gone_is_said_in_words(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
    await chat.ask("Anybody?")
    await chat.page.wait_for(shown(".problem"))
    assert "Your peer does not answer" in await chat.latest(".problem")


@pytest.mark.parametrize("fence", ["", "```html\n"])
async def test_what_a_donor_writes_stays_text(browser: Browser, fence: str) -> None:
    attack = (
        f"{fence}<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'"
        "</script><svg/onload=document.title='owned'><a href=javascript:alert(1)>x</a>&lt;b&gt;"
    )
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
        await chat.page.write("")
        await chat.write(attack)
        await chat.page.press("Enter")
        answer = await chat.answer()
        assert attack.removeprefix(fence) in answer
        assert await chat.page.evaluate("document.title") == "token.place"
        n_made = "document.querySelectorAll('.turn :is(img, script, svg, a, b)').length"
        assert await chat.page.evaluate(n_made) == 0
        assert chat.page.console == []


async def test_an_answer_without_end_is_left(browser: Browser) -> None:
    donor = ScriptedGenerator(script(*["x" * 65_536] * 17), {18: trio.Event()})
    async with serve_page(donor) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Write a library")
        await chat.answer()
        assert "longer than this page can show" in await chat.latest(".problem")
        await wait_until(lambda: donor.n_running == 0)


async def test_parts_without_end_are_one(browser: Browser) -> None:
    donor = ScriptedGenerator(script("```\n" * 20_000))
    async with serve_page(donor) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Draw a fence")
        await chat.answer()
        n_parts = "document.querySelectorAll('.answer > *').length"
        assert 100 < await chat.page.evaluate(n_parts) < 1000


async def test_a_fence_that_is_none_is_read_at_once(browser: Browser) -> None:
    lines = ["~" * 200_000 + "`", "```" + "a" * 200_000 + "`", "~~~" + " " * 200_000 + "`"]
    donor = ScriptedGenerator(script("\n".join(lines)))
    async with serve_page(donor) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Draw a fence")
        assert (await chat.answer()).startswith("~~~")
        assert await chat.page.evaluate("document.querySelectorAll('.turn .code').length") == 0


async def test_the_policy_refuses_markup_from_text(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
        for attack in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.write('x')",
            "setTimeout('document.title = 1')",
            "eval('1')",
        ):
            refused = f"(() => {{ try {{ {attack}; return '' }} catch (e) {{ return e.name }} }})()"
            assert await chat.page.evaluate(refused) in {"TypeError", "EvalError"}, attack
        elsewhere = "fetch('http://elsewhere.test:8000/').then(() => 'sent', () => 'refused')"
        assert await chat.page.evaluate(elsewhere) == "refused"
        assert any("Content Security Policy" in line for line in chat.page.console)


async def test_code_stands_apart_and_is_copied(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
        await browser.call(
            "Browser.grantPermissions",
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
            browserContextId=browser.context,
        )
        await chat.ask("So:\n```python\nif 1:\n    pass\n```\nDone.\n~~~\nopen")
        await chat.answer()
        blocks = "[...document.querySelectorAll('.answer pre')].map((e) => e.textContent)"
        assert await chat.page.evaluate(blocks) == ["if 1:\n    pass", "open"]
        prose = "[...document.querySelectorAll('.answer .prose')].map((e) => e.textContent)"
        assert await chat.page.evaluate(prose) == ["So:", "Done."]
        await chat.page.click(".answer .copy")
        await chat.page.wait_for(f"{shown('.answer .copy')} === 'Copied'")
        assert await chat.page.evaluate("navigator.clipboard.readText()") == "if 1:\n    pass"


async def test_reasoning_is_folded(browser: Browser) -> None:
    donor = ScriptedGenerator(script("<think>Let me see.", "</think>", "Blue.", stop=LengthStop()))
    async with serve_page(donor) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Which colour?")
        assert await chat.answer() == "Blue."
        assert await chat.page.evaluate(f"{one('.reasoning')}.open") is False
        assert await chat.page.evaluate(f"{one('.thoughts')}.textContent") == "Let me see."
        assert "cut at the limit" in await chat.latest(".facts")


async def test_the_keyboard_and_screen_readers(browser: Browser) -> None:
    engine = EchoEngine()
    async with serve_page(engine) as peer:
        chat = await Chatting.open(browser, peer)
        await chat.write("One")
        await chat.page.press("Enter", shift=True)
        await chat.page.write("Two")
        assert engine.requests == []
        await chat.page.press("Enter")
        await chat.answer()
        assert said(engine.requests[0]) == [("user", "One\nTwo")]
        assert "One" in await chat.page.text("#announce")
        nodes = (await chat.page.call("Accessibility.getFullAXTree"))["nodes"]
        controls = {"button", "textbox", "combobox", "link", "log"}
        named = {
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in controls
        }
        assert {("textbox", "Your message"), ("combobox", "Model"), ("button", "Send")} <= named
        assert ("log", "Conversation") in named
        assert not [role for role, name in named if not name]


async def test_the_choice_of_a_model(browser: Browser) -> None:
    engine = EchoEngine()
    async with serve_page(engine) as peer:
        chat = await Chatting.open(browser, peer)
        listed = f"[...{one('#model')}.options].map((option) => option.value)"
        assert await chat.page.evaluate(listed) == ["auto", TINY_MODEL, ALIAS]
        await chat.ask("Hello")
        await chat.answer()
        await chat.page.evaluate(f"void ({one('#model')}.value = {quoted(TINY_MODEL)})")
        await chat.ask("Hello")
        await chat.answer()
        assert [request.model for request in engine.requests] == ["auto", TINY_MODEL]


async def test_nobody_offers_anything_yet(browser: Browser) -> None:
    offers = Offers([])
    async with serve_page(offers=offers) as peer:
        chat = await Chatting.open(browser, peer)
        assert "tokenplace up --donate" in await chat.page.text("#nobody")
        offers.models.append(TINY_MODEL)
        await chat.page.evaluate(f"{one('#model')}.focus()")
        await chat.page.wait_for(f"{one('#nobody')}.hidden")
        assert await chat.page.text("#network") == "1 model is offered now"


async def test_an_api_key_is_asked_for_and_not_kept(browser: Browser) -> None:
    access = Access(keys=ApiKeys.of(["sk-right"]))
    async with serve_page(access=access) as peer:
        page = await browser.open_page(f"{peer.address}/")
        await page.wait_for(f"!{one('#key-form')}.hidden")
        for key in ("sk-wrong", "sk-right"):
            await page.wait_for(f"!{one('#key-form')}.hidden")
            await page.click("#key")
            await page.write(key)
            await page.press("Enter")
            if key == "sk-wrong":
                await page.wait_for(f"{shown('#key-wrong')} === 'That key was not accepted.'")
        await page.wait_for(f"{shown('#network')} === '1 model is offered now'")
        chat = Chatting(page)
        await chat.ask("Hello")
        assert await chat.answer() == "Hello"
        kept = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
        assert await page.evaluate(kept) == '[{},{},""]'


async def test_a_peer_with_a_new_key_is_asked_once_more(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("Before")
        await chat.answer()
        peer.restart()
        await chat.ask("After")
        assert await chat.answer() == "After"


async def test_without_cryptography_it_asks_in_clear_and_says_so(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer, before=WITHOUT_CRYPTO)
        assert "Not encrypted" in await chat.page.text("#unsealed")
        await chat.ask("Hello")
        assert await chat.answer() == "Hello"


async def test_light_dark_wide_and_narrow(browser: Browser) -> None:
    async with serve_page() as peer:
        chat = await Chatting.open(browser, peer)
        await chat.ask("```\n" + "wide " * 100 + "\n```\n" + "x" * 300)
        await chat.answer()
        papers = set()
        for scheme in ("light", "dark"):
            await chat.page.prefer(prefers_color_scheme=scheme)
            papers.add(await chat.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(papers) == 2
        for width in (1200, 360):
            await chat.page.resize(width, 800)
            assert await chat.page.evaluate("document.documentElement.scrollWidth") <= width
