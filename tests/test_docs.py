"""The pages against the code: whatever can be compared is compared here.

Start at `test_the_numbers_of_the_protocol_are_the_codes`. Phrases are looked for with line breaks
as spaces, so that a page may be wrapped anew.
"""

from __future__ import annotations

import configparser
import json
import re
from typing import Any

import msgpack
import pytest
from fastapi.routing import iter_route_contexts
from typer.main import get_command
from typer.testing import CliRunner

from tests.api_shim.serving import FakeCatalog
from tests.conftest import ROOT
from tests.fakes import EchoEngine, FakeEmbedder
from tests.peer.exchange_lab import make_request
from tests.protocol_numbers import NUMBERS
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.openai.bodies import ChatCompletionRequest, CompletionRequest
from tokenplace.api_shim.openai.embeddings import EmbeddingRequest
from tokenplace.api_shim.openai.fields import OnlyNeutral
from tokenplace.api_shim.page.routes import PATHS as PAGE_PATHS
from tokenplace.cli.app import app as cli
from tokenplace.dht.bootstrap import load_bootstrap, parse_bootstrap
from tokenplace.errors import DONOR_ERRORS, ErrorCode, TokenplaceError
from tokenplace.features import Feature, Requirement
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    JsonObject,
    Resume,
    SamplingParams,
    Tool,
    ToolChoice,
)
from tokenplace.peer import gen1, refusal, wire

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = {
    path: path.read_text("utf-8")
    for folder in ("tokenplace", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ALL_SOURCE = "\n".join(SOURCES.values())
README = (ROOT / "README.md").read_text("utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
DESIGN = (ROOT / "docs" / "design.md").read_text("utf-8")

# ---------------------------------------------------------------- numbers of the protocol


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("phrase", "expected"), NUMBERS, ids=[phrase for phrase, _ in NUMBERS])
def test_the_numbers_of_the_protocol_are_the_codes(
    phrase: str, expected: tuple[float, ...]
) -> None:
    pattern = re.escape(phrase).replace(r"\#", r"(\d[\d,]*(?:\.\d+)?)")
    found = [match.groups() for match in re.finditer(pattern, one_line(PROTOCOL))]
    assert len(found) == 1, f"stands there {len(found)} times"
    assert tuple(float(number.replace(",", "")) for number in found[0]) == expected


# ---------------------------------------------------------------- tables of the protocol


def section(page: str, number: int) -> str:
    return page.split(f"\n## {number}. ")[1].split("\n## ")[0]


def tables(text: str) -> list[list[list[str]]]:
    """Each table's rows as cells, without its heading."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in block.split("\n")]
        for block in (block.strip().split("\n", 2)[2] for block in blocks)
    ]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def all_errors(base: type[TokenplaceError] = TokenplaceError) -> list[type[TokenplaceError]]:
    return [base, *(error for child in base.__subclasses__() for error in all_errors(child))]


def said(errors: list[type[TokenplaceError]]) -> dict[str, tuple[str, str]]:
    return {e.code.value: (e.scope.value, "yes" if e.retry_elsewhere else "no") for e in errors}


def test_every_error_code_is_there_with_scope_and_retry() -> None:
    on_the_wire, local = (
        {names_in(code)[0]: (scope, retry) for code, scope, retry, _ in table}
        for table in tables(section(PROTOCOL, 8))
    )
    assert on_the_wire == said(list(DONOR_ERRORS.values()))
    assert local == said([error for error in all_errors() if error.code not in DONOR_ERRORS])
    assert on_the_wire.keys() | local.keys() == set(ErrorCode)


def test_the_codes_of_a_refusal() -> None:
    (listed,) = re.findall(r"\{`code`: one of ([^;]+);", PROTOCOL)
    assert set(names_in(listed)) == set(refusal.REFUSALS)


def test_the_keys_of_a_request() -> None:
    request = make_request(resume=(Resume(0, (1,)),), prompt_digest=bytes(32), is_hedge=True)
    sent = set(msgpack.unpackb(wire.encode_request(request, b"", b"", b"")))
    (table,) = tables(section(PROTOCOL, 4))
    assert {name for row in table for name in names_in(row[0])} == sent | {"credential"}


def test_the_fields_of_gen1() -> None:
    sampling = SamplingParams(
        typical_p=0.5,
        repeat_penalty=2,
        presence_penalty=1,
        frequency_penalty=1,
        logit_bias=((1, 1),),
    )
    tool = Tool("look_up", "", "{}")
    chat = ChatInput((ChatMessage("user", "x"),), (tool,), ToolChoice.NONE, False)
    request = make_request(
        input=chat,
        sampling=sampling,
        stop=("x",),
        max_tokens=1,
        ignore_eog=True,
        n=2,
        top_logprobs=0,
        output=JsonObject(),
    )
    sent = set(json.loads(gen1.encode_body(request)))
    table = tables(section(PROTOCOL, 7))[0]
    fields = {name for row in table for name in names_in(row[0])}
    assert fields == sent | {"prompt", "prompt_ids"}


def test_what_a_request_may_require() -> None:
    (listed,) = re.findall(r"^`requires` MUST name .*$", PROTOCOL, re.MULTILINE)
    assert set(Requirement) <= set(names_in(listed))
    assert set(Feature) <= set(names_in(section(PROTOCOL, 3)))


def test_sections_that_the_code_names_exist() -> None:
    named = re.findall(r"docs/protocol\.md,\W+sections? (\d+)(?: (?:to|and) (\d+))?", ALL_SOURCE)
    assert len(named) > 20
    headings = set(re.findall(r"^## (\d+)\. ", PROTOCOL, re.MULTILINE))
    assert {number for pair in named for number in pair if number} <= headings


# ---------------------------------------------------------------- commands and settings


def commands(command: Any, name: str) -> dict[str, Any]:
    """Every command that does something, by its full name."""
    if not hasattr(command, "commands"):
        return {name: command}
    found: dict[str, Any] = {}
    for child, inner in command.commands.items():
        found |= commands(inner, f"{name} {child}")
    return found


COMMANDS = commands(get_command(cli), "tokenplace")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


@pytest.mark.parametrize("name", ["up", "demo"])
def test_help_shows_and_explains_every_option(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    options = [o for o in COMMANDS[f"tokenplace {name}"].params if not o.hidden]
    assert len(options) >= 5
    for option in options:
        assert option.opts[0] in shown
        assert option.help, option.opts


def test_the_readme_names_only_options_that_exist() -> None:
    shown = [o for c in COMMANDS.values() for o in c.params if not o.hidden]
    every = {opt for o in shown for opt in (*o.opts, *o.secondary_opts)}
    every |= {opt for o in get_command(cli).params for opt in o.opts} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= every


def test_settings_in_the_readmes_toml_exist() -> None:
    (keys,) = re.findall(r"```toml\n\[up\]\n(.*?)```", README, re.DOTALL)
    params = {option.name for option in COMMANDS["tokenplace up"].params}
    assert set(re.findall(r"^(\w+) =", keys, re.MULTILINE)) <= params


def test_environment_variables() -> None:
    assert set(re.findall(r"TOKENPLACE_[A-Z_]*[A-Z]", README)) == set(
        re.findall(r"TOKENPLACE_[A-Z_]*[A-Z]", ALL_SOURCE)
    )


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets


# ---------------------------------------------------------------- the HTTP API


def test_every_route_is_in_the_readme() -> None:
    app = create_app(EchoEngine(), FakeCatalog(), embedder=FakeEmbedder())
    routes = iter_route_contexts(app.routes)
    served = {
        f"{method} {route.path}"
        for route in routes
        for method in route.methods or ()
        if route.path not in PAGE_PATHS
    }
    prefixes = re.findall(r"\(`(/\S+)` and `(/\S+)`\): `GET", README)[0]
    named = re.findall(r"`(GET|POST) (/[^`]*)`", README)
    shown = {f"{method} {prefix}{path}" for method, path in named for prefix in prefixes}
    aliases = {route for route in served if " /api/v2/" in route}
    assert {route.split()[1] for route in aliases} == set(re.findall(r"`(/api/v2/[^`]*)`", README))
    at_root = {route for route in served if route.count("/") == 1}
    (shown_at_root,) = re.findall(r"\(at the root: ([^)]*)\)", README)
    assert {route.split()[1] for route in at_root} == set(names_in(shown_at_root))
    assert shown == {route.replace("{name:path}", "{id}") for route in served - aliases - at_root}


def test_every_parameter_with_an_effect_is_in_the_readme() -> None:
    bodies = (ChatCompletionRequest, CompletionRequest, EmbeddingRequest)
    fields = {name: field for body in bodies for name, field in body.model_fields.items()}
    effective = {
        name
        for name, field in fields.items()
        if field.annotation is not Any
        and not any(isinstance(m, OnlyNeutral) for m in field.metadata)
    }
    rows = tables(README[README.index("| parameters |") :])[0]
    assert {name for row in rows for name in names_in(row[0])} == effective


@pytest.mark.parametrize(
    "said_by_us",
    [
        *re.findall(r"`(\w+_\w+)`", README.split("## When something")[1].split("##")[0]),
        *(
            "no peer known",
            "no peer runs in ",
            "A peer already runs in ",
            "another program uses it",
        ),
        *("x-tokenplace-accepted-by", "served by "),
    ],
)
def test_what_the_readme_quotes_is_said(said_by_us: str) -> None:
    assert said_by_us in README or said_by_us == "served by "
    assert f'"{said_by_us}' in ALL_SOURCE or said_by_us in one_line(ALL_SOURCE)


# ---------------------------------------------------------------- files


def heading_anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Any) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in heading_anchors(target.read_text("utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_files_and_folders_on_a_page_exist(page: Any) -> None:
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", text):
        assert (ROOT / "tokenplace" / path).exists() or (ROOT / path).exists(), path


def test_every_part_is_in_the_architecture() -> None:
    parts = {
        f"`{path.name}/`" if path.is_dir() else f"`{path.name}`"
        for path in (ROOT / "tokenplace").iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("__")
    }
    assert {part for part in parts if part not in ARCHITECTURE.split("## Processes")[0]} == set()


def test_files_of_the_home_are_the_codes() -> None:
    rows = tables(ARCHITECTURE.split("## Files in the home")[1])[0]
    assert len(rows) >= 8
    for row in rows:
        assert f'"{names_in(row[0])[0].rstrip("/")}"' in ALL_SOURCE, row[0]


def test_the_list_of_bootstrap_peers_names_nobody(tmp_path: Any) -> None:
    text = (ROOT / "bootstrap_nodes.txt").read_text("utf-8")
    assert text.startswith("#")
    assert parse_bootstrap(text, "bootstrap_nodes.txt") == ()
    assert load_bootstrap((), tmp_path).peers == ()


def test_every_dependency_has_its_reason() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg", "utf-8")
    required = [
        *metadata["options"]["install_requires"].split("\n"),
        *metadata["options.extras_require"]["donate"].split("\n"),
    ]
    names = {re.split(r"[\[ =<>~]", line)[0] for line in required if line.strip()}
    explained = " ".join(row[0] for row in tables(DESIGN.split("## Dependencies")[1])[0])
    assert {name for name in names if not re.search(rf"\b{name}\b", explained)} == set()


def test_the_release_of_a_library_is_the_same_everywhere() -> None:
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    for name in ("libp2p", "llama-cpp-python"):
        (release,) = re.findall(rf"^ +{name} == (\S+)", setup, re.MULTILINE)
        assert f"{name} {release}" in DESIGN
        assert f"{name}=={release}" in (ROOT / "requirements" / "run.in").read_text("utf-8")
