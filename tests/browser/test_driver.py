"""The driver sees what it claims to see: otherwise the other tests here could not fail."""

from __future__ import annotations

import socket

import pytest

from tests.browser.chromium import Browser, BrowserError

PAGE = "data:text/html,<button onclick='document.title=%22pressed%22'>Press</button><input>"


async def test_a_page_is_driven_by_mouse_and_keyboard(browser: Browser) -> None:
    page = await browser.open_page(PAGE)
    await page.click("button")
    await page.wait_for("document.title === 'pressed'")
    await page.click("input")
    await page.write("Hello")
    assert await page.evaluate("document.querySelector('input').value") == "Hello"


async def test_errors_requests_and_broken_policies_are_seen(browser: Browser) -> None:
    policy = "<meta http-equiv='Content-Security-Policy' content=%22img-src 'none'%22>"
    page = await browser.open_page(f"data:text/html,{policy}<title>Here</title>")
    await page.evaluate("console.error('complaint')")
    await page.evaluate("setTimeout(() => { throw new Error('uncaught') })")
    await page.evaluate("void (document.body.innerHTML = '<img src=http://picture.test/>')")
    await page.evaluate("fetch('http://127.0.0.1:1/').catch(() => 'refused')")
    await page.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert "error: complaint" in page.console
    assert any("Content Security Policy" in line for line in page.console)
    assert any("uncaught" in failure for failure in page.failures)
    assert "http://127.0.0.1:1/" in page.requests
    with pytest.raises(BrowserError, match="planned"):
        await page.evaluate("(() => { throw new Error('planned') })()")


async def test_names_lead_to_this_machine_or_nowhere(browser: Browser) -> None:
    page = await browser.open_page()
    with pytest.raises(BrowserError, match="ERR_NAME_NOT_RESOLVED"):
        await page.go("http://tokenplace.example/")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        port = unused.getsockname()[1]
        with pytest.raises(BrowserError, match="ERR_CONNECTION_REFUSED"):
            await page.go(f"http://anything.test:{port}")
