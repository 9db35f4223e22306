"""What a running peer says of itself, as plain data. Start at `status_of`; the control socket
serves it as JSON to `tokenplace peer status` and to the demo. Never holds text of a prompt or an
answer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenplace.dht.bootstrap import Joiner
    from tokenplace.dht.donors import DonorStatus
    from tokenplace.node.donating import Donation
    from tokenplace.node.node import Node
    from tokenplace.node.serving import Serving
    from tokenplace.peer.host import PeerHost


def status_of(node: Node, now: float) -> dict[str, Any]:
    """The whole status at `now` (unix seconds)."""
    serving, asking = node.serving, node.asking
    hosts = [half.host for half in (serving, asking) if half is not None]
    half = serving or asking
    return {
        "version": node.version,
        "pid": node.pid,
        "home": str(node.settings.home),
        "network": node.settings.network,
        "uptime_s": now - node.started_at,
        "peer_id": serving.host.peer_id if serving else None,
        "addresses": serving.host.addrs() if serving else [],
        "reachability": _reachability(serving.host if serving else None),
        "api": {"url": node.api_url} if node.api_url else None,
        "join": _join(half.joiner if half else None),
        "connections": [
            dataclasses.asdict(connection) for host in hosts for connection in host.connections()
        ],
        "routing_table": {"n_peers": half.kad.n_peers() if half else 0},
        "exchanges": _exchanges(serving),
        "models": [_model(donation) for donation in node.donations],
        "donors": [_donor(known) for known in (asking.finder.status() if asking else ())],
        "requests": [dataclasses.asdict(attempt) for attempt in node.attempts],
    }


def _reachability(host: PeerHost | None) -> str:
    if host is None:
        return "asks only: does not listen, so nobody needs to reach it"
    n_inbound = sum(connection.direction == "in" for connection in host.connections())
    if n_inbound:
        return f"reached: {n_inbound} peers are connected from outside"
    return "not known yet: nobody has connected so far"


def _join(joiner: Joiner | None) -> dict[str, Any]:
    if joiner is None:
        return {"state": "starting", "text": "starting", "peers": []}
    status = joiner.status()
    peers = [
        {"addr": f"{addr}/p2p/{peer.peer_id}", "state": status.reasons.get(peer.peer_id, "")}
        for peer in joiner.peers
        for addr in peer.addrs
    ]
    return {"state": status.state, "text": status.text, "peers": peers}


def _exchanges(serving: Serving | None) -> dict[str, int]:
    """Requests of others: open now, and since the start."""
    if serving is None:
        return {}
    statistics = serving.donor.statistics
    return {
        "open": statistics.n_answering,
        "served": statistics.n_served,
        "failed": statistics.n_failed,
        "cancelled": statistics.n_cancelled,
        "tokens": statistics.n_tokens,
    }


def _model(donation: Donation) -> dict[str, Any]:
    engine = donation.engine
    load = engine.load if engine else None
    return {
        "name": donation.name,
        "artifact": engine.info.artifact if engine else None,
        "state": donation.state,
        "reason": donation.reason,
        "n_ctx": engine.info.n_ctx if engine else None,
        "n_running": load.n_running if load else 0,
        "n_queued": load.n_queued if load else 0,
        "prefill_tps": load.prefill_tps if load else 0.0,
        "decode_tps": load.decode_tps if load else 0.0,
        "restarts": load.restarts if load else 0,
    }


def _donor(known: DonorStatus) -> dict[str, Any]:
    load = known.load
    return {
        "peer_id": known.peer_id,
        "models": list(known.models),
        "rtt_ms": None if known.rtt_s is None else known.rtt_s * 1000,
        "state": load.state if load else None,
        "queue": load.queue if load else None,
        "prefill_tps": load.prefill_tps if load else None,
        "decode_tps": load.decode_tps if load else None,
        "live_age_s": known.live_age_s,
        "is_failed": known.is_failed,
    }
