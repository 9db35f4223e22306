"""The child process that talks to the Hugging Face Hub: `python -m tokenplace.models.hub_child`.

A process of its own, because the client blocks in threads that cannot be cancelled: killing it is
the one cancellation that works at every moment. It says one JSON line on stdout: the answer, or
{"error": text} for what the Hub itself refused; for a broken network it dies of the client's
exception, whose last line the parent shows.

Differs from `hf_hub_download`, which starts from nothing after every interruption: here a part of
the file stays on disk, and the rest is asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]


def describe(repo: str, revision: str, path: str) -> dict[str, Any]:
    """Commit, sha256 (LFS) and size of a file, without its bytes."""
    found = get_hf_file_metadata(hf_hub_url(repo, path, revision=revision))
    return {"commit": found.commit_hash, "etag": found.etag, "size": found.size}


def fetch(repo: str, commit: str, path: str, size_bytes: str, partial: str) -> dict[str, Any]:
    """Complete the file `partial`, going on where an earlier attempt ended."""
    with Path(partial).open("ab") as file:
        http_get(
            hf_hub_url(repo, path, revision=commit),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=int(size_bytes),
        )
    return {}


def main(verb: str, *arguments: str) -> None:
    """Do `describe` or `fetch` and say the result."""
    try:
        answer = describe(*arguments) if verb == "describe" else fetch(*arguments)
    except GatedRepoError:
        answer = {"error": "its owner wants a licence to be accepted on the Hub first"}
    except RepositoryNotFoundError:
        answer = {"error": "there is no such repository, or it is private"}
    except (RevisionNotFoundError, RemoteEntryNotFoundError):
        answer = {"error": "the repository has no such file"}
    except HfHubHTTPError as error:
        answer = {"error": f"the Hub answered {error.response.status_code}"}
    except FileMetadataError:
        answer = {"error": "the Hub's answer makes no sense"}
    except OfflineModeIsEnabled:
        answer = {"error": "HF_HUB_OFFLINE is set"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
