"""The page's files as they are sent, and what its text promises. How it works: tests/browser/."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api_shim.serving import http_client, serving
from tests.browser.page_lab import ALIAS, Offers, serve_page
from tests.conftest import ROOT
from tokenplace.api_shim.page.routes import FILES, PATHS, is_known, readme

FOLDER = ROOT / "tokenplace" / "api_shim" / "page"
SOURCES = {name: (FOLDER / name).read_text("utf-8") for name in FILES}
MIN_CONTRAST = 4.5  # WCAG 2.2, success criterion 1.4.3


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_each_file_has_its_headers(path: str) -> None:
    async with serving() as address, http_client(address) as client:
        response = await client.get(path)
        assert response.status_code == 200
        policy = dict(
            part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["img-src"] == "'self' data:"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        kinds = {"/": "html", ".css": "css", ".js": "javascript", ".md": "plain"}
        kind = kinds[path if path == "/" else path[path.rindex(".") :]]
        assert response.headers["content-type"] == f"text/{kind}; charset=utf-8"


async def test_it_is_sent_again_only_when_it_changed() -> None:
    async with serving() as address, http_client(address) as client:
        first = await client.get("/page.js")
        assert first.headers["cache-control"] == "no-cache"
        again = await client.get("/page.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        other = await client.get("/page.css", headers={"if-none-match": first.headers["etag"]})
        assert other.status_code == 200
        head = await client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.post("/", json={})).status_code == 405


@pytest.mark.parametrize(
    ("header", "expected"),
    [("", False), ('"1"', True), ('W/"1"', True), ('"0", "1"', True), ("*", True), ('"2"', False)],
)
def test_which_version_a_browser_has(header: str, expected: bool) -> None:
    assert is_known(header, '"1"') is expected


def test_every_file_is_served_and_every_link_leads_there() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix not in {".py", ""}} == set(FILES)
    links = re.findall(r'(?:href|src)="([^"]*)"', SOURCES["index.html"])
    anchors = set(re.findall(r'\bid="([^"]*)"', SOURCES["index.html"]))
    assert len(links) > 10
    for link in links:
        assert link in PATHS or link[1:] in anchors or link.startswith("data:"), link
    for imported in re.findall(r'from "\./([^"]*)"', "".join(SOURCES.values())):
        assert imported in FILES


def test_nothing_makes_markup_of_text() -> None:
    for name, source in SOURCES.items():
        for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "://"):
            rest = (
                source.replace("http://127.0.0.1", "")
                .replace("http://www.w3.org/2000/svg", "")
                .replace("http%3A", "")
            )
            assert way not in rest, (name, way)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", SOURCES["index.html"])


def test_the_readme_has_a_roadmap() -> None:
    assert "\n## Roadmap\n" in readme(ROOT)


def test_an_installed_package_has_its_readme_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("of another package")
    installed = tmp_path / "tokenplace-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: tokenplace\nVersion: 0.1.0\n\n# of tokenplace\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert readme(tmp_path).strip() == "# of tokenplace"


# ---------------------------------------------------------------- the examples


class _Examples(HTMLParser):
    """The texts of `<pre data-run=…>` and `<pre data-answer=…>`, by kind and name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], str] = {}
        self._at: tuple[str, str] | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if tag == "pre" and name in {"data-run", "data-answer"}:
                self._at = (name, value or "")
                self.found[self._at] = ""

    def handle_endtag(self, tag: str) -> None:
        self._at = None if tag == "pre" else self._at

    def handle_data(self, data: str) -> None:
        if self._at:
            self.found[self._at] += data


def examples() -> dict[tuple[str, str], str]:
    parser = _Examples()
    parser.feed(SOURCES["index.html"])
    return parser.found


def shape(value: Any) -> Any:
    """What a value is made of: names and types; of a list, its first entry's."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value)


def holds(whole: Any, part: Any) -> bool:
    """Is everything of `part` in `whole`?"""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], inner) for name, inner in part.items())
    if isinstance(part, list):
        return not part or holds(whole[0], part[0])
    return bool(whole == part)


async def run(client: httpx.AsyncClient, command: str) -> Any:
    """What a curl command of the page gets."""
    words = shlex.split(command.replace("\\\n", ""))
    assert words[0] == "curl"
    path = words[1].removeprefix("http://127.0.0.1:5010")
    if "-d" not in words:
        return (await client.get(path)).raise_for_status().json()
    name, _, value = words[words.index("-H") + 1].partition(": ")
    body = words[words.index("-d") + 1]
    response = await client.post(path, content=body, headers={name: value})
    return response.raise_for_status().json()


@pytest.mark.parametrize("name", [name for kind, name in examples() if kind == "data-run"])
async def test_the_examples_run_and_get_what_they_show(name: str) -> None:
    texts = examples()
    async with serve_page(offers=Offers([ALIAS])) as peer, http_client(peer.address) as client:
        answer = await run(client, texts["data-run", name])
    expected = json.loads(texts["data-answer", name])
    assert holds(shape(answer), shape(expected))


def test_there_is_an_example_of_each_route() -> None:
    names = {"models", "model", "chat", "completion", "public-key"}
    assert {name for _, name in examples()} == names


# ---------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", SOURCES["page.css"], re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark))
    grounds = ("paper", "raised", "tint")
    pairs = [(ink, ground) for ink in ("ink", "quiet", "accent") for ground in grounds]
    for ink, ground in [*pairs, ("on-accent", "accent"), ("warn", "warn-tint")]:
        bright, dim = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= MIN_CONTRAST, (ink, ground)
