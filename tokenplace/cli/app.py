"""The commands and their flags. Nothing heavy is imported before a command runs: `--help` is
instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from tokenplace import __version__, defaults
from tokenplace.cli.config import load_config
from tokenplace.cli.output import fail
from tokenplace.settings import (
    AUTO,
    FLASH_ATTENTION,
    KV_TYPES,
    LOG_FORMATS,
    Settings,
    default_home,
    parse_gpu_layers,
)

app = typer.Typer(
    name="tokenplace",
    help="Use LLMs that others donate, or donate yours: one peer, no central relay.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
peer_app = typer.Typer(help="Look at the running peer.", no_args_is_help=True)
models_app = typer.Typer(help="Models on this machine and their names.", no_args_is_help=True)
app.add_typer(peer_app, name="peer")
app.add_typer(models_app, name="models")

Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="TOKENPLACE_HOME", help="Folder of all state; one peer a home."),
]


def home_of(home: Path | None) -> Path:
    return (home or default_home()).expanduser().absolute()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tokenplace {__version__}")
        raise typer.Exit()


@app.callback()
def read_config(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="TOKENPLACE_CONFIG",
            help="TOML file with a section a command, e.g. [up] api_port = 5011.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Use LLMs that others donate, or donate yours: one peer, no central relay."""
    assert isinstance(context.command, TyperGroup)
    try:
        context.default_map = load_config(config or default_home() / "config.toml", context.command)
    except FileNotFoundError:
        if config is not None:
            fail(f"{config}: no such file")


@app.command()
def up(
    donate: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TOKENPLACE_DONATE",
            help="Serve this model: a name (see: models list) or a GGUF file. Repeatable.",
        ),
    ] = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TOKENPLACE_BOOTSTRAP",
            help="Join through this multiaddr instead of bootstrap_nodes.txt. Repeatable.",
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TOKENPLACE_LISTEN",
            help=f"Listen on this multiaddr (serving: {defaults.LISTEN_ADDR}). Repeatable.",
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Help others find donors, without donating.")
    ] = False,
    api_port: Annotated[
        int,
        typer.Option(
            envvar="TOKENPLACE_API_PORT", min=0, max=65535, help="Local API; 0 picks a free port."
        ),
    ] = defaults.API_PORT,
    no_api: Annotated[bool, typer.Option("--no-api", help="Serve no local API.")] = False,
    api_host: Annotated[
        str | None,
        typer.Option(
            envvar="TOKENPLACE_API_HOST",
            help="Serve the API on this IP address too, not to this machine alone; needs a key.",
        ),
    ] = None,
    api_allow_host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TOKENPLACE_API_ALLOW_HOST",
            help="Name under which the API may be called, as behind a proxy; needs a key. "
            "Repeatable.",
        ),
    ] = None,
    api_allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TOKENPLACE_API_ALLOW_ORIGIN",
            help="Web page that may call the API, e.g. https://chat.example. Repeatable.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TOKENPLACE_API_KEY_FILE",
            help="Ask every request for one of the keys in this file, one a line.",
        ),
    ] = None,
    api_socket: Annotated[
        Path | None,
        typer.Option(
            envvar="TOKENPLACE_API_SOCKET",
            help="Serve the API on this Unix socket too; only you can open it.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            envvar="TOKENPLACE_THREADS",
            min=1,
            max=1024,
            help="Compute threads for all donated models together (default: every core).",
        ),
    ] = None,
    ctx: Annotated[
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
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            "-np",
            envvar="TOKENPLACE_PARALLEL",
            help=f"Requests of a model that run at once (default: {defaults.DEFAULT_SLOTS}).",
        ),
    ] = None,
    gpu_layers: Annotated[
        str,
        typer.Option(
            "--gpu-layers",
            "-ngl",
            envvar="TOKENPLACE_GPU_LAYERS",
            help="Layers that the GPU computes; auto: all, if llama.cpp was built for one.",
        ),
    ] = AUTO,
    flash_attention: Annotated[
        str,
        typer.Option(
            "--flash-attention",
            "-fa",
            envvar="TOKENPLACE_FLASH_ATTENTION",
            help=f"Flash attention: {', '.join(FLASH_ATTENTION)}.",
        ),
    ] = AUTO,
    kv_type: Annotated[
        str,
        typer.Option(
            "--kv-type",
            envvar="TOKENPLACE_KV_TYPE",
            help=f"Type of the KV cache, K and V: {', '.join(KV_TYPES)}.",
        ),
    ] = KV_TYPES[0],
    memory: Annotated[
        float | None,
        typer.Option(
            envvar="TOKENPLACE_MEMORY",
            help="GB that all donated models together may take "
            f"(default: {defaults.DONATED_MEMORY_SHARE:.0%} of this machine's).",
        ),
    ] = None,
    idle_unload: Annotated[
        float,
        typer.Option(
            envvar="TOKENPLACE_IDLE_UNLOAD",
            help="Unload a model after so many minutes without a request; 0: never.",
        ),
    ] = 0.0,
    owner_first: Annotated[
        bool,
        typer.Option(
            "--owner-first/--no-owner-first",
            envvar="TOKENPLACE_OWNER_FIRST",
            help="Your own requests to your models start before others' that wait.",
        ),
    ] = True,
    network: Annotated[
        str, typer.Option(envvar="TOKENPLACE_NETWORK", help="Name of the network to be part of.")
    ] = defaults.NETWORK,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Dial private addresses that peers name.")
    ] = False,
    log_format: Annotated[
        str,
        typer.Option(
            envvar="TOKENPLACE_LOG_FORMAT",
            help=f"How TOKENPLACE_LOG's lines are written: {', '.join(LOG_FORMATS)}.",
        ),
    ] = LOG_FORMATS[0],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Fetch models without asking.")] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
    home: Home = None,
) -> None:
    """Run a peer: the local API, and with --donate also the models you give to others."""
    from tokenplace.cli.up import run_up

    settings = Settings(
        home=home_of(home),
        network=network,
        donate=tuple(dict.fromkeys(donate or ())),
        bootstrap=tuple(bootstrap or ()),
        listen=tuple(listen or ()),
        serve=serve,
        api_port=api_port,
        has_api=not no_api,
        api_host=api_host,
        api_allow_hosts=tuple(api_allow_host or ()),
        api_allow_origins=tuple(api_allow_origin or ()),
        api_key_file=api_key_file and api_key_file.expanduser().absolute(),
        api_socket=api_socket and api_socket.expanduser().absolute(),
        allow_private=allow_private,
        n_threads=threads,
        n_ctx=ctx,
        n_slots=parallel,
        n_gpu_layers=parse_gpu_layers(gpu_layers),
        flash_attention=flash_attention,
        kv_type=kv_type,
        memory_gb=memory,
        idle_unload_min=idle_unload,
        is_owner_first=owner_first,
        log_format=log_format,
    )
    run_up(settings, may_fetch=yes, until_eof=until_eof)


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "Why is the sky blue?",
    donors: Annotated[int, typer.Option(min=1, max=16, help="How many donors to start.")] = 2,
    api_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Local API; 0 picks a free port.")
    ] = defaults.API_PORT,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Compute threads, divided among the donors."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Ask, print, stop.")] = False,
) -> None:
    """A whole network on this machine: a bootstrap peer, donors, and one peer that asks them."""
    from tokenplace.cli.demo import run_demo

    run_demo(prompt=prompt, n_donors=donors, api_port=api_port, n_threads=threads, once=once)


@app.command()
def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this and end; without it, talk.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model name or alias.")] = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=defaults.MAX_NEW_TOKENS, help="Longest answer, in tokens."),
    ] = None,
    home: Home = None,
) -> None:
    """Talk to a model through the running peer."""
    from tokenplace.cli.chat import run_chat

    run_chat(home_of(home), model, prompt, max_tokens)


@peer_app.command("status")
def peer_status(
    request: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="With --requests: this one alone, by its id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    requests: Annotated[
        bool, typer.Option("--requests", help="Also the latest requests, and who was asked why.")
    ] = False,
    home: Home = None,
) -> None:
    """Identity, addresses, connections, models offered here, donors known."""
    from tokenplace.cli.status import show_status

    if request is not None and not requests:
        fail(f"{request} is no command", "tokenplace peer status --requests ID")
    show_status(home_of(home), as_json=as_json, with_requests=requests, request=request)


@peer_app.command("invite")
def peer_invite(home: Home = None) -> None:
    """Print the one line with which somebody else joins through this peer."""
    from tokenplace.cli.status import show_invite

    show_invite(home_of(home))


@peer_app.command("trust")
def peer_trust(
    peer: Annotated[
        str | None, typer.Argument(help="Peer id of a donor that you know, or its address.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What you call it.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no longer.")] = False,
    tools_from: Annotated[
        str | None,
        typer.Option(help="Take tool calls from: trusted donors only (as at first), or any."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show all, as without any argument.")
    ] = False,
    home: Home = None,
) -> None:
    """Say which donors may answer requests with tools: programs carry out what they write."""
    from tokenplace.cli.trust import edit_trust, show_trust

    edit_trust(home_of(home), peer, name=name, remove=remove, tools_from=tools_from)
    if show or (peer is None and tools_from is None):
        show_trust(home_of(home))


@models_app.command("list")
def models_list(home: Home = None) -> None:
    """Models known by name, and which of them are on this machine."""
    from tokenplace.cli.models import list_models

    list_models(home_of(home))


@models_app.command("pull")
def models_pull(
    source: Annotated[
        str, typer.Argument(help="A catalogue name, or hf:OWNER/REPO/FILE.gguf on Hugging Face.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name to give it (default: made from the file's).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Fetch a model: its size is named first, its hash checked afterwards."""
    from tokenplace.cli.models import pull_model

    pull_model(home_of(home), source, name, may_fetch=yes)


@models_app.command("alias")
def models_alias(
    alias: Annotated[str | None, typer.Argument(help="The name that programs send.")] = None,
    target: Annotated[str | None, typer.Argument(help="What it stands for here.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Forget this alias.")] = False,
    home: Home = None,
) -> None:
    """Show the aliases, set one, or remove one."""
    from tokenplace.cli.models import edit_aliases

    edit_aliases(home_of(home), alias, target, remove=remove)
