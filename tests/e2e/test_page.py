"""The page of a real peer, answered by a real donor of another process."""

from __future__ import annotations

import trio

from tests.browser.chromium import Browser
from tests.browser.page_lab import Chatting, one, shown
from tests.e2e.network import MODEL, Network


async def test_a_question_on_the_page_is_answered_by_a_donor(
    browser: Browser, network: Network
) -> None:
    page = await browser.open_page(f"http://127.0.0.1:{network.api_port}/")
    await page.wait_for(f"[...{one('#model')}.options].some((o) => o.value === '{MODEL}')")
    chat = Chatting(page)
    await chat.ask("Say hello.")
    answer = await chat.answer()
    assert answer, await chat.latest(".problem")
    title = await page.evaluate(f"{one('.turn .who')}.title")
    statuses = await trio.to_thread.run_sync(lambda: [network.status(d) for d in network.donors])
    assert title.removeprefix("peer id ") in {status["peer_id"] for status in statuses}
    assert "tokens/s" in await page.evaluate(shown(".facts"))
