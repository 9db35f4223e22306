"""The flags of `tokenplace up` as types, and what other commands share with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenplace import defaults
from tokenplace.settings import FLASH_ATTENTION, KV_TYPES, LOG_FORMATS

Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="TOKENPLACE_HOME", help="Folder of all state; one peer a home."),
]

Donate = Annotated[
    list[str] | None,
    typer.Option(
        envvar="TOKENPLACE_DONATE",
        help="Serve this model: a name (see: models list) or a GGUF file. Repeatable.",
    ),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option(
        envvar="TOKENPLACE_BOOTSTRAP",
        help="Join through this multiaddr instead of bootstrap_nodes.txt. Repeatable.",
    ),
]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        envvar="TOKENPLACE_LISTEN",
        help=f"Listen on this multiaddr (serving: {defaults.LISTEN_ADDR}). Repeatable.",
    ),
]
Serve = Annotated[bool, typer.Option("--serve", help="Help others find donors, without donating.")]
ApiPort = Annotated[
    int,
    typer.Option(
        envvar="TOKENPLACE_API_PORT", min=0, max=65535, help="Local API; 0 picks a free port."
    ),
]
NoApi = Annotated[bool, typer.Option("--no-api", help="Serve no local API.")]
ApiHost = Annotated[
    str | None,
    typer.Option(
        envvar="TOKENPLACE_API_HOST",
        help="Serve the API on this IP address too, not to this machine alone; needs a key.",
    ),
]
ApiAllowHost = Annotated[
    list[str] | None,
    typer.Option(
        envvar="TOKENPLACE_API_ALLOW_HOST",
        help="Name under which the API may be called, as behind a proxy; needs a key. Repeatable.",
    ),
]
ApiAllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        envvar="TOKENPLACE_API_ALLOW_ORIGIN",
        help="Web page that may call the API, e.g. https://chat.example. Repeatable.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TOKENPLACE_API_KEY_FILE",
        help="Ask every request for one of the keys in this file, one a line.",
    ),
]
ApiSocket = Annotated[
    Path | None,
    typer.Option(
        envvar="TOKENPLACE_API_SOCKET",
        help="Serve the API on this Unix socket too; only you can open it.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        envvar="TOKENPLACE_THREADS",
        min=1,
        max=1024,
        help="Compute threads for all donated models together (default: every core).",
    ),
]
Ctx = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        "-c",
        "--ctx-size",
        envvar="TOKENPLACE_CTX",
        min=64,
        max=1 << 20,
        help="Context of each request, in tokens.",
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        "--parallel",
        "-np",
        envvar="TOKENPLACE_PARALLEL",
        help=f"Requests of a model that run at once (default: {defaults.DEFAULT_SLOTS}).",
    ),
]
GpuLayers = Annotated[
    str,
    typer.Option(
        "--gpu-layers",
        "-ngl",
        envvar="TOKENPLACE_GPU_LAYERS",
        help="Layers that the GPU computes; auto: all, if llama.cpp was built for one.",
    ),
]
FlashAttention = Annotated[
    str,
    typer.Option(
        "--flash-attention",
        "-fa",
        envvar="TOKENPLACE_FLASH_ATTENTION",
        help=f"Flash attention: {', '.join(FLASH_ATTENTION)}.",
    ),
]
KvType = Annotated[
    str,
    typer.Option(
        "--kv-type",
        envvar="TOKENPLACE_KV_TYPE",
        help=f"Type of the KV cache, K and V: {', '.join(KV_TYPES)}.",
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        envvar="TOKENPLACE_MEMORY",
        help="GB that all donated models together may take "
        f"(default: {defaults.DONATED_MEMORY_SHARE:.0%} of this machine's).",
    ),
]
IdleUnload = Annotated[
    float,
    typer.Option(
        envvar="TOKENPLACE_IDLE_UNLOAD",
        help="Unload a model after so many minutes without a request; 0: never.",
    ),
]
OwnerFirst = Annotated[
    bool,
    typer.Option(
        "--owner-first/--no-owner-first",
        envvar="TOKENPLACE_OWNER_FIRST",
        help="Your own requests to your models start before others' that wait.",
    ),
]
Network = Annotated[
    str, typer.Option(envvar="TOKENPLACE_NETWORK", help="Name of the network to be part of.")
]
AllowPrivate = Annotated[
    bool, typer.Option("--allow-private", help="Dial private addresses that peers name.")
]
LogFormat = Annotated[
    str,
    typer.Option(
        envvar="TOKENPLACE_LOG_FORMAT",
        help=f"How TOKENPLACE_LOG's lines are written: {', '.join(LOG_FORMATS)}.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Fetch models without asking.")]
UntilEof = Annotated[bool, typer.Option("--until-eof", hidden=True)]
