from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace.errors import ConfigError
from tokenplace.models.sources import HubFile, name_from_file, parse_source
from tokenplace.models.syntax import is_model_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:Alice/Tiny-GGUF/tiny.gguf", HubFile("Alice/Tiny-GGUF", "tiny.gguf")),
        ("hf:Alice/Tiny-GGUF@v1.0/a/tiny.gguf", HubFile("Alice/Tiny-GGUF", "a/tiny.gguf", "v1.0")),
        (
            "https://huggingface.co/Alice/Tiny-GGUF/resolve/main/tiny.gguf?download=true",
            HubFile("Alice/Tiny-GGUF", "tiny.gguf"),
        ),
        (
            "https://huggingface.co/Alice/Tiny-GGUF/blob/abc123/a/tiny%20v2.gguf",
            HubFile("Alice/Tiny-GGUF", "a/tiny v2.gguf", "abc123"),
        ),
        ("https://hf.co/Alice/Tiny/blob/main/tiny.gguf", HubFile("Alice/Tiny", "tiny.gguf")),
    ],
)
def test_sources(text: str, expected: HubFile) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tiny",
        "hf:",
        "hf:Alice/tiny.gguf",
        "hf:Alice/Tiny/tiny.bin",
        "hf:Alice/Tiny/../../etc/passwd.gguf",
        "hf:Alice/Tiny/a//b.gguf",
        "hf:../Tiny/tiny.gguf",
        "hf:Alice/Tiny@a b/tiny.gguf",
        "http://huggingface.co/Alice/Tiny/resolve/main/tiny.gguf",
        "https://huggingface.co.example.org/Alice/Tiny/resolve/main/tiny.gguf",
        "https://example.org/Alice/Tiny/resolve/main/tiny.gguf",
        "https://huggingface.co/Alice/Tiny/resolve/main/%2e%2e/tiny.gguf",
        "https://huggingface.co/Alice/Tiny",
        "https://[/tiny.gguf",
        "hf:Alice/Tiny/big-00001-of-00003.gguf",
    ],
)
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_source(text)


def test_a_mirror_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    source = "https://hub.example.org/Alice/Tiny/blob/main/tiny.gguf"
    assert parse_source(source) == HubFile("Alice/Tiny", "tiny.gguf")


@given(st.text(max_size=200))
def test_any_text_is_a_source_or_an_error(text: str) -> None:
    for prefix in ("", "hf:", "https://huggingface.co/"):
        try:
            found = parse_source(prefix + text)
        except ConfigError:
            continue
        assert ".." not in found.path.split("/")
        assert not found.path.startswith("/")


def test_names_made_from_files() -> None:
    assert name_from_file("Qwen3-0.6B-Q8_0.gguf") == "qwen3-0.6b-q8_0"
    assert name_from_file("SmolLM2 135M (new).GGUF") == "smollm2-135m-new"
    with pytest.raises(ConfigError):
        name_from_file("模型.gguf")
    with pytest.raises(ConfigError):
        name_from_file("auto.gguf")


@given(st.text(max_size=120))
def test_a_made_name_is_a_name(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert is_model_name(name_from_file(text))
