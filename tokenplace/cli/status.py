"""`tokenplace peer status` and `peer invite`: what the running peer says of itself, for people."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenplace.cli.control import ask_peer
from tokenplace.cli.output import console, fail, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_status(home: Path, *, as_json: bool, with_requests: bool) -> None:
    """Print the status of the peer that runs in `home`."""
    status = ask_peer(home, "/status")
    if as_json:
        print(json.dumps(status, indent=2))
        return
    screen = console()
    _print_peer(screen, status)
    _print_models(screen, status["models"])
    _print_donors(screen, status["donors"])
    if with_requests:
        _print_requests(screen, status["requests"])


def show_invite(home: Path) -> None:
    """Print the line with which somebody else joins through the peer that runs in `home`."""
    addresses = ask_peer(home, "/status")["addresses"]
    if not addresses:
        fail(
            "this peer does not listen, so nobody can join through it",
            "start it with --serve or --donate MODEL",
        )
    best = min(addresses, key=_distance)
    print(f"tokenplace up --bootstrap {best}")
    if _distance(best) == 2:
        say("this address works only on this machine")
    elif _distance(best) == 1:
        say("this address works only in the local network")


def _distance(addr: str) -> int:
    """From how far away an address can be reached: 0 everywhere, 1 local network, 2 this
    machine."""
    parts = addr.split("/")
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return 0  # a DNS name
    return 2 if ip.is_loopback else 1 if ip.is_private else 0


def _print_peer(screen: Console, status: dict[str, Any]) -> None:
    screen.print(f"[bold]peer[/] {status['peer_id'] or 'asks only, under a throw-away identity'}")
    screen.print(f"  home           {status['home']}")
    screen.print(f"  network        {status['network']}")
    screen.print(f"  up             {status['uptime_s']:.0f} s")
    screen.print(f"  API            {status['api']['url'] if status['api'] else 'none'}")
    for number, addr in enumerate(status["addresses"]):
        screen.print(f"  {'addresses' if not number else '':14} {addr}")
    screen.print(f"  reachability   {status['reachability']}")
    screen.print(f"  bootstrap      {status['join']['text']}")
    for peer in status["join"]["peers"]:
        screen.print(f"                 {peer['addr']}: {peer['state']}")
    screen.print(f"  connections    {len(status['connections'])}")
    for connection in status["connections"]:
        direction, peer_id = connection["direction"], connection["peer_id"]
        screen.print(f"                 {direction:3} {peer_id} {connection['remote_addr']}")
    screen.print(f"  routing table  {status['routing_table']['n_peers']} peers")


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _print_models(screen: Console, models: list[dict[str, Any]]) -> None:
    if not models:
        return
    table = _table(
        "models offered here", "name", "state", "context", "running", "queued", "tokens/s"
    )
    for m in models:
        state = m["state"] + (f": {m['reason']}" if m["reason"] else "")
        table.add_row(
            m["name"],
            state,
            str(m["n_ctx"] or ""),
            str(m["n_running"]),
            str(m["n_queued"]),
            f"{m['decode_tps']:.0f}",
        )
    screen.print(table)


def _print_donors(screen: Console, donors: list[dict[str, Any]]) -> None:
    if not donors:
        screen.print("  donors         none known yet")
        return
    table = _table("donors known", "peer", "models", "round trip", "queue", "tokens/s", "seen")
    for d in donors:
        table.add_row(
            d["peer_id"],
            ", ".join(d["models"]),
            "?" if d["rtt_ms"] is None else f"{d['rtt_ms']:.0f} ms",
            "?" if d["queue"] is None else str(d["queue"]),
            "?" if d["decode_tps"] is None else f"{d['decode_tps']:.0f}",
            _seen(d),
        )
    screen.print(table)


def _seen(donor: dict[str, Any]) -> str:
    if donor["is_failed"]:
        return "failed, resting"
    age_s = donor["live_age_s"]
    return "by others only" if age_s is None else f"{age_s:.0f} s ago"


def _print_requests(screen: Console, requests: list[dict[str, Any]]) -> None:
    table = _table("latest requests", "model", "donor", "try", "outcome", "first token", "tokens")
    for r in requests:
        first = "" if r["first_token_s"] is None else f"{r['first_token_s'] * 1000:.0f} ms"
        table.add_row(
            r["model"], r["donor"], str(r["number"] + 1), r["outcome"], first, str(r["n_tokens"])
        )
    screen.print(table)
