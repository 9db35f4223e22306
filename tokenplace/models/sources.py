"""Where a model can be pulled from, as a person writes it. Start at `parse_source`. Pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from tokenplace.errors import ConfigError
from tokenplace.models.syntax import MAX_NAME_CHARS, is_model_name

HUB_HOSTS: Final = frozenset({"huggingface.co", "hf.co"})

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FILE = re.compile(rf"({_PART}/){{0,8}}[A-Za-z0-9][A-Za-z0-9._ +-]{{0,250}}\.gguf")
_SPLIT_FILE = re.compile(r".*-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One GGUF file of a repository on the Hugging Face Hub. revision: branch, tag or commit."""

    repo: str
    path: str
    revision: str = "main"

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]


def parse_source(text: str) -> HubFile:
    """
    `hf:OWNER/REPO/FILE.gguf`, `hf:OWNER/REPO@REVISION/FILE.gguf`, or the https address of a file's
    page or download. Raises `ConfigError`.
    """
    found = _parse_short(text) if text.startswith("hf:") else _parse_url(text)
    if found is None:
        raise ConfigError(
            "This does not name a GGUF file on the Hugging Face Hub.",
            hint="Write hf:OWNER/REPO/FILE.gguf, or the https address of the file's page.",
        )
    if _SPLIT_FILE.fullmatch(found.file_name):
        raise ConfigError(
            f"{found.file_name} is one of several parts.", hint="Choose a model in a single file."
        )
    return found


def _parse_short(text: str) -> HubFile | None:
    owner, _, rest = text.removeprefix("hf:").partition("/")
    repo, _, path = rest.partition("/")
    repo, _, revision = repo.partition("@")
    return _checked(f"{owner}/{repo}", path, revision or "main")


def _parse_url(text: str) -> HubFile | None:
    try:
        url = urlsplit(text)
        host = url.hostname
    except ValueError:
        return None
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname
    if url.scheme != "https" or not (host in HUB_HOSTS or host == mirror):
        return None
    parts = unquote(url.path).split("/", 5)  # "", owner, repo, "resolve" or "blob", revision, path
    if len(parts) != 6 or parts[3] not in ("resolve", "blob"):
        return None
    return _checked(f"{parts[1]}/{parts[2]}", parts[5], parts[4])


def _checked(repo: str, path: str, revision: str) -> HubFile | None:
    if _REPO.fullmatch(repo) and _FILE.fullmatch(path) and _REVISION.fullmatch(revision):
        return HubFile(repo, path, revision)
    return None


def name_from_file(file_name: str) -> str:
    """A model's name made from its file's: `Qwen3-0.6B-Q8_0.gguf` → `qwen3-0.6b-q8_0`. Raises
    `ConfigError`.
    """
    stem = file_name[: -len(".gguf")] if file_name.lower().endswith(".gguf") else file_name
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:MAX_NAME_CHARS]
    if not is_model_name(name):
        raise ConfigError(f"No name can be made from {file_name!r}.", hint="Give one.")
    return name
