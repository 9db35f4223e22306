"""The commands and their flags. Nothing heavy is imported before a command runs: `--help` is
instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from tokenplace import __version__, defaults
from tokenplace.cli import options
from tokenplace.cli.config import load_config
from tokenplace.cli.options import Home
from tokenplace.cli.output import fail
from tokenplace.settings import (
    AUTO,
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
    donate: options.Donate = None,
    bootstrap: options.Bootstrap = None,
    listen: options.Listen = None,
    serve: options.Serve = False,
    api_port: options.ApiPort = defaults.API_PORT,
    no_api: options.NoApi = False,
    api_host: options.ApiHost = None,
    api_allow_host: options.ApiAllowHost = None,
    api_allow_origin: options.ApiAllowOrigin = None,
    api_key_file: options.ApiKeyFile = None,
    api_socket: options.ApiSocket = None,
    threads: options.Threads = None,
    ctx: options.Ctx = None,
    parallel: options.Parallel = None,
    gpu_layers: options.GpuLayers = AUTO,
    flash_attention: options.FlashAttention = AUTO,
    kv_type: options.KvType = KV_TYPES[0],
    memory: options.Memory = None,
    idle_unload: options.IdleUnload = 0.0,
    owner_first: options.OwnerFirst = True,
    network: options.Network = defaults.NETWORK,
    allow_private: options.AllowPrivate = False,
    log_format: options.LogFormat = LOG_FORMATS[0],
    yes: options.Yes = False,
    until_eof: options.UntilEof = False,
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
