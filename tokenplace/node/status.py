"""What a running peer says of itself, as plain data. Start at `status_of`; the control socket
serves it as JSON to `tokenplace peer status` and to the demo. Never holds text of a prompt or an
answer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import trio

from tokenplace.engine.confine import PROTECTIONS
from tokenplace.errors import ConfigError
from tokenplace.node.request_status import request_status
from tokenplace.node.trust_file import TrustFile
from tokenplace.router.trust import ToolsFrom

if TYPE_CHECKING:
    from tokenplace.dht.bootstrap import Joiner
    from tokenplace.dht.donors import DonorStatus
    from tokenplace.node.asking import Asking
    from tokenplace.node.donation import Donation
    from tokenplace.node.node import Node
    from tokenplace.node.serving import Serving
    from tokenplace.peer.host import ConnectionInfo
    from tokenplace.router.memory import Opinion


def status_of(node: Node, now: float) -> dict[str, Any]:
    """The whole status at `now` (unix seconds)."""
    serving, asking = node.serving, node.asking
    half, finding = serving or asking, asking or serving
    connections = _connections(serving, asking)
    return {
        "version": node.version,
        "pid": node.pid,
        "home": str(node.settings.home),
        "network": node.settings.network,
        "uptime_s": now - node.started_at,
        "is_serving": node.settings.is_serving,
        "peer_id": serving.host.peer_id if serving else None,
        "addresses": serving.host.addrs() if serving else [],
        "reachability": _reachability(node),
        "api": _api(node) if node.api_url else None,
        "join": _join(node.joiner),
        "connections": [dataclasses.asdict(connection) for connection in connections],
        "routing_table": {"n_peers": half.kad.n_peers() if half else 0},
        "announced": _announced(serving),
        "exchanges": _exchanges(serving),
        "models": [_model(donation) for donation in node.donations],
        "donors": [
            _donor(known, node.router.opinion(known.peer_id) if node.router else None)
            for known in (finding.finder.status() if finding else ())
        ],
        "requests": [
            request_status(record, now, trio.current_time()) for record in node.journal.records
        ],
        "trust": _trust(TrustFile(node.settings.home)),
    }


def _connections(*halves: Serving | Asking | None) -> list[ConnectionInfo]:
    """Connections of both halves to other peers, without the one between them."""
    hosts = [half.host for half in halves if half is not None]
    own = {host.peer_id for host in hosts}
    connections = [c for host in hosts for c in host.connections() if c.peer_id not in own]
    # Both halves of a donor know the same others: each is one peer to a person.
    return list({connection.peer_id: connection for connection in reversed(connections)}.values())


def _reachability(node: Node) -> dict[str, Any]:
    """`addresses`: those that other peers have proven to reach."""
    if not node.settings.is_serving:
        text = "asks only: does not listen, so nobody needs to reach it"
        return {"state": "asks_only", "addresses": [], "text": text}
    if node.serving is None:
        return {"state": "starting", "addresses": [], "text": "starting"}
    report = node.serving.prober.report()
    addresses = [f"{addr}/p2p/{node.serving.host.peer_id}" for addr in report.confirmed]
    return {"state": report.state, "addresses": addresses, "text": report.text}


def _join(joiner: Joiner | None) -> dict[str, Any]:
    if joiner is None:
        return {"state": "starting", "text": "starting", "peers": []}
    status = joiner.status()
    peers = [
        {"addr": f"{addr}/p2p/{peer.peer_id}", "problem": status.reasons.get(peer.peer_id, "")}
        for peer in joiner.peers
        for addr in peer.addrs
    ]
    return {"state": status.state, "text": status.text, "peers": peers}


def _announced(serving: Serving | None) -> dict[str, int] | None:
    """How far the DHT knows of this donor: keys to stand under, and those that others confirmed."""
    status = serving.announcer.status() if serving else None
    if status is None or not status.models:
        return None
    return {"n_keys": status.n_keys, "n_confirmed": status.n_confirmed}


def _exchanges(serving: Serving | None) -> dict[str, int]:
    """Requests of others: open now, and since the start. ranges: of addresses that they come from.
    refused, shed: told `busy` at the door, and out of the queue.
    """
    if serving is None:
        return {}
    statistics, admission = serving.donor.statistics, serving.donor.admission
    return {
        "open": statistics.n_answering,
        "running": admission.n_running,
        "queued": admission.n_queued,
        "ranges": admission.n_buckets,
        "refused": admission.n_refused,
        "shed": admission.n_shed,
        "served": statistics.n_served,
        "failed": statistics.n_failed,
        "cancelled": statistics.n_cancelled,
        "tokens": statistics.n_tokens,
    }


def _api(node: Node) -> dict[str, Any]:
    """Where the local API is, and which file has the keys that it asks for."""
    key_file = node.settings.api_key_file
    return {"url": node.api_url, "key_file": str(key_file) if key_file else None}


def _model(donation: Donation) -> dict[str, Any]:
    info, load, facts, share = donation.info, donation.load, donation.facts, donation.share
    is_restarting = load is not None and load.state == "restarting"
    return {
        "name": donation.name,
        "artifact": info.artifact if info else None,
        "architecture": facts.architecture if facts else None,
        "quantization": facts.quantization if facts else None,
        "n_params": facts.n_params if facts else None,
        "state": "restarting" if donation.engine and is_restarting else donation.state,
        "progress": donation.progress,
        "reason": donation.reason,
        "memory_bytes": share.n_bytes if share else None,
        "n_ctx": info.n_ctx if info else None,
        "n_slots": info.n_slots if info else None,
        "n_running": load.n_running if load else 0,
        "n_queued": load.n_queued if load else 0,
        "prefill_tps": load.prefill_tps if load else 0.0,
        "decode_tps": load.decode_tps if load else 0.0,
        "restarts": load.restarts if load else 0,
        "unconfined": [p for p in PROTECTIONS if load and p not in load.confinement],
    }


def _trust(file: TrustFile) -> dict[str, Any]:
    """Whose tool calls are taken. `problem`: why the file says nothing; then nobody's are."""
    try:
        trust = file.read()
    except ConfigError as error:
        return {"tools_from": ToolsFrom.TRUSTED, "peers": {}, "problem": str(error)}
    return {"tools_from": trust.tools_from, "peers": dict(trust.peers), "problem": ""}


def _donor(known: DonorStatus, opinion: Opinion | None) -> dict[str, Any]:
    """`standing`: whether this peer asks it now, by what came of asking it, and `ready_in_s` when
    it is asked again; `measured_tps`: tokens a second of its answers.
    """
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
        "standing": opinion.standing.name.lower() if opinion else "ready",
        "ready_in_s": opinion.ready_in_s if opinion else 0.0,
        "n_asked": opinion.n_asked if opinion else 0,
        "measured_tps": opinion.decode_tps if opinion else None,
    }
