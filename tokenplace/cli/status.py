"""`tokenplace peer status` and `peer invite`: what the running peer says of itself, for people.

Start at `show_status`. Peers are named by the end of their ids, as all ids begin alike; `--json`
has them whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokenplace.cli.control import ask_peer
from tokenplace.cli.output import (
    LABEL_CHARS,
    console,
    counted,
    fail,
    human_bytes,
    human_seconds,
    say,
    table_of,
)
from tokenplace.cli.requests import print_request, print_requests, requests_named
from tokenplace.cli.trust import trust_lines
from tokenplace.node.addresses import Reach, reach_of, short

if TYPE_CHECKING:
    from rich.console import Console

Status = dict[str, Any]
UNKNOWN: Final = "?"


def show_status(
    home: Path, *, as_json: bool, with_requests: bool, request: str | None = None
) -> None:
    """Print the status of the peer that runs in `home`; with `request`, an id or its beginning, of
    that alone."""
    status = ask_peer(home, "/status")
    if request is not None:
        found = requests_named(status["requests"], request)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            print_request(console(), found)
    elif as_json:
        print(json.dumps(status, indent=2))
    else:
        print_status(console(), status, with_requests=with_requests)


def show_invite(home: Path) -> None:
    """Print the line with which somebody else joins through the peer that runs in `home`."""
    status = ask_peer(home, "/status")
    if not status["is_serving"]:
        fail(
            "this peer does not listen, so nobody can join through it",
            "start it with --serve or --donate MODEL",
        )
    if not status["addresses"]:
        fail("this peer is still starting", "try again in a few seconds")
    # Those that others have reached come first: one may be a router's, which no card here has.
    best = farthest([*status["reachability"]["addresses"], *status["addresses"]])
    print(f"tokenplace up --bootstrap {best}")
    if reach_of(best) is Reach.THIS_MACHINE:
        say("this address works only on this machine")
    elif reach_of(best) is Reach.LOCAL_NETWORK:
        say("this address works only in the local network")


def farthest(addresses: list[str]) -> str:
    """The address that can be reached from farthest away; of equals the first."""
    return min(addresses, key=reach_of)


def print_status(screen: Console, status: Status, *, with_requests: bool) -> None:
    """Lay out a whole status."""
    for label, text in _facts(status):
        screen.print(f"{label:{LABEL_CHARS}}{text}", markup=False)
    if status["models"]:
        _print_models(screen, status["models"])
    if status["donors"]:
        _print_donors(screen, status["donors"])
    if with_requests:
        print_requests(screen, status["requests"])


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    """Lines of label and text; a line that goes on the one before has no label."""
    yield "peer", _identity(status)
    yield "home", status["home"]
    yield "network", f"{status['network']}: {status['join']['text']}"
    for peer in status["join"]["peers"]:
        if peer["problem"]:
            yield "", f"{peer['addr']}: {peer['problem']}"
    yield "up", human_seconds(status["uptime_s"])
    yield "API", status["api"]["url"] if status["api"] else "none"
    for number, addr in enumerate(status["addresses"]):
        yield "" if number else "addresses", addr
    yield "reachability", status["reachability"]["text"]
    yield "routing table", counted(status["routing_table"]["n_peers"], "peer")
    yield "connections", str(len(status["connections"]))
    for connection in status["connections"]:
        way = {"in": "from", "out": "to  "}[connection["direction"]]
        yield "", f"{way} {short(connection['peer_id'])}  {connection['remote_addr']}"
    if announced := status["announced"]:
        n_keys = counted(announced["n_keys"], "key")
        yield "announced", f"{n_keys} in the DHT, {announced['n_confirmed']} confirmed by others"
    if status["is_serving"] and (exchanges := status["exchanges"]):
        yield "served", _served(exchanges)
        yield "load", _queue(exchanges)
    if status["api"]:
        yield from _trust(status["trust"])
    if not status["donors"]:
        yield "donors known", "none yet"


def _trust(trust: Status) -> Iterator[tuple[str, str]]:
    """Whose tool calls are taken."""
    label = "tool calls"
    lines = trust_lines(trust["tools_from"], trust["peers"])
    for line in [trust["problem"]] if trust["problem"] else lines:
        yield label, line
        label = ""


def _identity(status: Status) -> str:
    if status["peer_id"]:
        return str(status["peer_id"])
    return "starting" if status["is_serving"] else "asks only, under a throw-away identity"


def _served(exchanges: Status) -> str:
    return (
        f"{counted(exchanges['served'], 'answer')}, {counted(exchanges['tokens'], 'token')}; "
        f"{exchanges['open']} open, {exchanges['failed']} failed, "
        f"{exchanges['cancelled']} cancelled"
    )


def _queue(exchanges: Status) -> str:
    """Others' requests that are in hand, and those for which there was no room."""
    return (
        f"{exchanges['running']} running and {exchanges['queued']} queued, from "
        f"{counted(exchanges['ranges'], 'address range')}; since the start "
        f"{exchanges['refused']} refused as busy, {exchanges['shed']} shed from the queue"
    )


def _print_models(screen: Console, models: list[Status]) -> None:
    columns = ("model", "type", "state", *_FIGURES_OF_MODELS)
    table = table_of("models offered here", columns, _FIGURES_OF_MODELS)
    for m in models:
        table.add_row(
            m["name"],
            m["quantization"] or UNKNOWN,
            _state(m),
            UNKNOWN if m["memory_bytes"] is None else human_bytes(m["memory_bytes"]),
            _figure(m["n_ctx"]),
            _speed(m["decode_tps"]),
            f"{m['n_running']} of {_figure(m['n_slots'])}",
            str(m["n_queued"]),
        )
    screen.print(table)
    for m in models:
        if m["reason"]:
            screen.print(f"{m['name']}: {m['reason']}", markup=False)
        if m["unconfined"]:
            screen.print(f"{m['name']}: {_unconfined(m['unconfined'])}", markup=False)


def _unconfined(protections: list[str]) -> str:
    may = ", ".join(_WITHOUT.get(protection, protection) for protection in protections)
    return f"its process may {may}: this system cannot prevent it, or its GPU needs it"


def _state(model: Status) -> str:
    progress = f" {model['progress']:.0%}" if model["state"] == "hashing" else ""
    restarts = f", {counted(model['restarts'], 'restart')}" if model["restarts"] else ""
    return f"{model['state']}{progress}{restarts}"


def _print_donors(screen: Console, donors: list[Status]) -> None:
    columns = ("donor", "models", *_FIGURES_OF_DONORS)
    table = table_of("donors known", columns, _FIGURES_OF_DONORS)
    for d in donors:
        table.add_row(
            short(d["peer_id"]),
            ", ".join(d["models"]),
            UNKNOWN if d["rtt_ms"] is None else f"{d['rtt_ms']:.0f} ms",
            _figure(d["queue"]),
            _speed(d["decode_tps"]),
            _speed(d["measured_tps"]),
            _seen(d),
            _standing(d),
        )
    screen.print(table)


_WITHOUT: Final = {
    "network": "make connections",
    "files": "open files",
    "programs": "start programs",
}
_FIGURES_OF_MODELS: Final = ("memory", "context", "tokens/s", "running", "queued")
_FIGURES_OF_DONORS: Final = ("round trip", "queue", "tokens/s", "measured", "heard", "standing")
_STANDINGS: Final = {
    "ready": "ready",
    "suspect": "its path broke",
    "due": "failed, may be tried",
    "cooling": "busy",
    "resting": "failed",
}


def _figure(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _speed(tokens_per_s: float | None) -> str:
    return f"{tokens_per_s:.0f}" if tokens_per_s else UNKNOWN


def _seen(donor: Status) -> str:
    if donor["is_failed"]:
        return "did not answer"
    age_s = donor["live_age_s"]
    return "from others" if age_s is None else f"{human_seconds(age_s)} ago"


def _standing(donor: Status) -> str:
    """Whether it is asked now, by what came of asking it."""
    text = _STANDINGS[donor["standing"]]
    if donor["standing"] in ("cooling", "resting") and donor["ready_in_s"]:
        return f"{text}, rests {human_seconds(donor['ready_in_s'])}"
    return f"{text}; {donor['n_asked']} asked" if donor["n_asked"] else text
