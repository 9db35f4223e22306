"""Attacks on a donor's exchange: sealed requests that are none, are bombs, or are never finished.
Start at `ATTACKS`.

Every one of them is answered with its code, unsealed or inside the seal, or cut off in its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import msgpack

from tests.e2e.hostile.attacks import Forge, events_in, framed, refusal_in
from tests.e2e.hostile.handshakes import KEEPALIVE_S
from tests.e2e.hostile.questions import FRAME_BYTES, dawdling
from tests.e2e.hostile.raw_peer import FIN, RST, RawPeer, RawStream
from tests.e2e.hostile.siege import AT_ONCE_S, Attack, Attacker, Ending
from tests.sealing.forge import header as seal_header
from tests.sealing.forge import pad, request_info
from tokenplace import defaults
from tokenplace.errors import ErrorCode, TokenplaceError
from tokenplace.generation import Event, Finished
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.wire import FRAME_LENGTH, GENERATE_PROTOCOL, encode_request
from tokenplace.sealing import suites
from tokenplace.sealing.answer import AnswerOpener, ReplySecrets
from tokenplace.sealing.request import request_digest

DEEP: Final = b"\x91" * 100_000 + b"\xc0"  # a list in a list in a list ...
WIDE: Final = b"\x9a" + (100_000).to_bytes(4, "big") + b"\xc0" * 100_000
ROOM: Final = defaults.MAX_BODY_BYTES - 100

TURN_S: Final = 20.0  # an answer waits for its turn in the engine, behind those that others have

Check = Callable[[bytes], object]
Frame = Callable[[Forge], tuple[bytes, Check]]
"""A request's bytes, and what looks at the answer."""


async def sends(attacker: Attacker, frame: Frame) -> RawStream:
    """One request on a stream of its own."""
    data, check = frame(attacker.forge)
    stream = await (await attacker.connect()).open_stream(GENERATE_PROTOCOL)
    stream.check = check
    for start in range(0, len(data), FRAME_BYTES):
        await stream.send(data[start : start + FRAME_BYTES])
    return stream


# ---------------------------------------------------------------- what must come back


def refuses(code: ErrorCode) -> Check:
    def check(answer: bytes) -> None:
        assert refusal_in(answer) is code

    return check


def says(opener: AnswerOpener, is_right: Callable[[Event], bool]) -> Check:
    def check(answer: bytes) -> None:
        last = events_in(answer, opener)[-1]
        assert is_right(last), last

    return check


def is_error(code: ErrorCode) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, TokenplaceError) and event.code is code


def is_finished(event: Event) -> bool:
    return isinstance(event, Finished)


# ---------------------------------------------------------------- sealed by hand


def seal(forge: Forge, plaintext: bytes, head: bytes | None = None) -> bytes:
    """Seal a plaintext as it is, padded by the caller, rightly or not."""
    key = forge.seal_target.key
    head = head or seal_header(key_id=key.id)
    info = request_info(head, defaults.NETWORK, forge.target.raw_id)
    return framed(head + suites.encrypt(plaintext, key.public, info))


def fields_of(forge: Forge, reply: ReplySecrets) -> dict[str, object]:
    """The map of a good request."""
    payload = encode_request(
        forge.request(1), forge.seal_target.epoch, reply.resp_secret, reply.key.public
    )
    fields: dict[str, object] = msgpack.unpackb(payload)
    return fields


def changed(changes: dict[str, object], is_right: Callable[[Event], bool] | None) -> Frame:
    """A good request but for these entries. is_right: what is said inside the seal; None: it is
    refused as malformed.
    """

    def frame(forge: Forge) -> tuple[bytes, Check]:
        reply = ReplySecrets.generate()
        payload = msgpack.packb(fields_of(forge, reply) | changes)
        data = seal(forge, pad(payload))
        opener = AnswerOpener(reply, request_digest(data[FRAME_LENGTH.size :]))
        return data, says(opener, is_right) if is_right else refuses(ErrorCode.BAD_FORMAT)

    return frame


def resuming(ids: object, is_right: Callable[[Event], bool] | None) -> Frame:
    """A request to go on with an answer that nobody gave."""
    resume = [{"choice": 0, "ids": ids}]
    return changed({"resume": resume, "prompt_digest": bytes(32)}, is_right)


def extended(n_keys: int, key: bytes, value: bytes) -> Callable[[Forge], bytes]:
    """The map of a good request with entries written by hand before the others, as a payload."""

    def payload(forge: Forge) -> bytes:
        fields = fields_of(forge, ReplySecrets.generate())
        rest: bytes = msgpack.packb(fields)[1:]
        start: bytes = msgpack.Packer().pack_map_header(len(fields) + n_keys)
        return start + (key + value) * n_keys + rest

    return payload


def malformed(payload: Callable[[Forge], bytes]) -> Frame:
    """A payload that is refused before anybody can answer under the seal."""
    return lambda forge: (seal(forge, pad(payload(forge))), refuses(ErrorCode.BAD_FORMAT))


def misfit(plaintext: Callable[[bytes], bytes]) -> Frame:
    """A good payload, wrongly padded."""

    def frame(forge: Forge) -> tuple[bytes, Check]:
        payload = msgpack.packb(fields_of(forge, ReplySecrets.generate()))
        return seal(forge, plaintext(payload)), refuses(ErrorCode.BAD_FORMAT)

    return frame


def headed(**fields: int) -> Frame:
    """A good request under another header."""

    def frame(forge: Forge) -> tuple[bytes, Check]:
        payload = msgpack.packb(fields_of(forge, ReplySecrets.generate()))
        head = seal_header(**{"key_id": forge.seal_target.key.id, **fields})
        return seal(forge, pad(payload), head), refuses(ErrorCode.BAD_FORMAT)

    return frame


def unsealed(data: bytes, code: ErrorCode) -> Frame:
    return lambda forge: (data, refuses(code))


def tampered(forge: Forge) -> tuple[bytes, Check]:
    frame, _ = forge.frame()
    data = frame[:-100] + bytes([frame[-100] ^ 1]) + frame[-99:]
    return data, refuses(ErrorCode.BAD_FORMAT)


def to_another_key(forge: Forge) -> tuple[bytes, Check]:
    good = forge.seal_target
    key = replace(good.key, public=suites.PrivateKey.generate().public)
    return forge.frame(to=replace(good, key=key))[0], refuses(ErrorCode.BAD_FORMAT)


def under_another_id(forge: Forge) -> tuple[bytes, Check]:
    good = forge.seal_target
    key = replace(good.key, id=(good.key.id + 1) % 256)
    return forge.frame(to=replace(good, key=key))[0], refuses(ErrorCode.UNKNOWN_KEY)


def to_another_donor(forge: Forge) -> tuple[bytes, Check]:
    frame, _ = forge.frame(donor_id=throwaway_identity().peer_id_bytes)
    return frame, refuses(ErrorCode.BAD_FORMAT)


def in_another_network(forge: Forge) -> tuple[bytes, Check]:
    return forge.frame(network="other")[0], refuses(ErrorCode.BAD_FORMAT)


def of_an_old_epoch(forge: Forge) -> tuple[bytes, Check]:
    old = replace(forge.seal_target, epoch=bytes(8))
    return forge.frame(to=old)[0], refuses(ErrorCode.STALE_EPOCH)


# ---------------------------------------------------------------- requests that misbehave later


async def goes_on_talking(attacker: Attacker, data: bytes, flags: int) -> RawStream:
    """A good request, and more before its answer is whole."""
    frame, _ = attacker.forge.frame(max_tokens=3000)
    stream = await (await attacker.connect()).open_stream(GENERATE_PROTOCOL)
    await stream.send(frame)
    await stream.receive_exactly(1)
    await stream.send(data, flags)
    return stream


async def asks_and_leaves(attacker: Attacker) -> RawStream:
    """A good request again and again, each given up at once."""
    peer = await attacker.connect()

    async def ask() -> None:
        stream = await peer.open_stream(GENERATE_PROTOCOL)
        await stream.send(attacker.forge.frame(max_tokens=3000)[0])
        await stream.send(b"", RST)

    attacker.repeat(ask)
    return await peer.open_stream(GENERATE_PROTOCOL)


async def replays(attacker: Attacker) -> RawStream:
    """What somebody else asked, word for word, after it was answered."""
    frame, opener = attacker.forge.frame()
    asked = await (await attacker.connect()).open_stream(GENERATE_PROTOCOL)
    await asked.send(frame)
    await asked.ended.wait()
    assert is_finished(events_in(bytes(asked.data), opener)[-1])
    stolen = await (await attacker.connect()).open_stream(GENERATE_PROTOCOL)
    stolen.check = refuses(ErrorCode.STALE_EPOCH)
    await stolen.send(frame)
    return stolen


async def answers_no_ping(attacker: Attacker) -> RawPeer:
    """Has a long answer made for it, and is gone without a word."""
    frame, _ = attacker.forge.frame(max_tokens=3000)
    stream = await (await attacker.connect()).open_stream(GENERATE_PROTOCOL)
    stream.peer.is_polite = False
    await stream.send(frame)
    return stream.peer


# ---------------------------------------------------------------- the table


def _sending(name: str, frame: Frame, within_s: float = AT_ONCE_S) -> Attack:
    return Attack(f"exchange: {name}", partial(sends, frame=frame), Ending.STREAM, within_s)


def _json(name: str, body: bytes, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> Attack:
    return _sending(f"JSON of {name}", changed({"body": body}, is_error(code)))


def _ignored(value: bytes) -> bytes:
    """A body with a field that nobody knows."""
    return b'{"prompt":"x","max_tokens":1,"ignored":' + value + b"}"


def _biased(biases: bytes) -> bytes:
    return b'{"prompt":"x","logit_bias":{' + biases + b"}}"


def _formed(schema: bytes) -> bytes:
    form = b'{"type":"json_schema","schema":"' + schema + b'"}'
    return b'{"prompt":"x","response_format":' + form + b"}"


def _with_tools(parameters: bytes, n: int) -> bytes:
    tools = [b'{"name":"t%d","parameters":"%b"}' % (number, parameters) for number in range(n)]
    messages = b'[{"role":"user","content":"x"}]'
    return b'{"messages":' + messages + b',"tools":[' + b",".join(tools) + b"]}"


LARGEST: Final = FRAME_LENGTH.pack(defaults.MAX_REQUEST_FRAME_BYTES)

ATTACKS: Final = (
    _sending("4 GiB", unsealed(FRAME_LENGTH.pack(0xFFFFFFFF), ErrorCode.TOO_BIG)),
    _sending(
        "a byte too long",
        unsealed(FRAME_LENGTH.pack(defaults.MAX_REQUEST_FRAME_BYTES + 1), ErrorCode.TOO_BIG),
    ),
    _sending("nothing", unsealed(framed(b""), ErrorCode.BAD_FORMAT)),
    _sending("garbage", unsealed(framed(bytes(range(256)) * 8), ErrorCode.BAD_FORMAT)),
    _sending("tampered with", tampered),
    _sending("to another key", to_another_key),
    _sending("under another key's id", under_another_id),
    _sending("to another donor", to_another_donor),
    _sending("in another network", in_another_network),
    _sending("of an old epoch", of_an_old_epoch),
    _sending("another format", headed(form=2)),
    _sending("a weaker suite", headed(kem=0x0020)),
    _sending("another cipher", headed(aead=1)),
    _sending("no map", malformed(lambda forge: b"\xc0")),
    _sending("an empty map", malformed(lambda forge: b"\x80")),
    _sending("a map of 4 billion", malformed(lambda forge: b"\xdf\xff\xff\xff\xff")),
    _sending("a list in a list in a list", malformed(lambda forge: DEEP)),
    _sending("65 keys", malformed(extended(65 - 13, b"\xa1k", b"\xc0"))),
    _sending("a key twice", malformed(extended(1, b"\xa2op", b"\xa8generate"))),
    _sending("a long key", malformed(extended(1, b"\xd9\x41" + b"k" * 65, b"\xc0"))),
    _sending("a list for a key", malformed(extended(1, DEEP, b"\xc0"))),
    _sending("4 GiB of bytes", malformed(extended(1, b"\xa1k", b"\xc6\xff\xff\xff\xff"))),
    _sending("bytes after the map", malformed(lambda forge: extended(0, b"", b"")(forge) + b"\0")),
    _sending("a deep list where texts belong", malformed(extended(1, b"\xa8requires", DEEP))),
    _sending("a wide list where texts belong", malformed(extended(1, b"\xa8requires", WIDE))),
    _sending("a deep list nobody asked for", malformed(extended(1, b"\xa1k", DEEP))),
    _sending(
        "a wide list nobody asked for",
        changed({f"k{i}": [None] * 50_000 for i in range(40)}, is_finished),
        TURN_S,
    ),
    _sending("a deep list to resume", malformed(extended(1, b"\xa6resume", DEEP))),
    _sending("a wide list to resume", malformed(extended(1, b"\xa6resume", WIDE))),
    _sending("resumes with ids in a list", resuming([1] * 100_000, None)),
    _sending(
        "resumes more than an answer may have",
        resuming(bytes(4 * defaults.MAX_NEW_TOKENS + 4), None),
    ),
    _sending(
        "resumes another prompt", resuming(bytes(4), is_error(ErrorCode.PROMPT_MISMATCH)), TURN_S
    ),
    _sending("a wrong reply key", changed({"reply_key": b"\xff" * 1216}, None)),
    _sending("an epoch of another length", changed({"epoch": bytes(9)}, None)),
    _sending("no padding", misfit(lambda payload: pad(payload)[: len(payload) + 4])),
    _sending("padding of no zeros", misfit(lambda payload: pad(payload)[:-1] + b"\1")),
    _sending("padding to no power of two", misfit(lambda payload: pad(payload) + bytes(16))),
    _sending("padding to too little", misfit(lambda payload: bytes(1024))),
    _sending("a length beyond the padding", misfit(lambda payload: b"\xff" * 4 + bytes(2044))),
    _sending("a plaintext of nothing", misfit(lambda payload: b"")),
    _sending("another operation", changed({"op": "train"}, is_error(ErrorCode.UNSUPPORTED))),
    _sending(
        "unknown features", changed({"requires": ["x" * 64] * 32}, is_error(ErrorCode.UNSUPPORTED))
    ),
    _sending(
        "a model nobody has",
        changed({"artifact": "ab" * 32}, is_error(ErrorCode.MODEL_NOT_OFFERED)),
    ),
    _json("nothing", b""),
    _json("a list", b"[]"),
    _json("no UTF-8", b'{"prompt":"\xff"}'),
    _json("lists within lists", b"[" * ROOM),
    _json("maps within maps", b'{"a":' * (ROOM // 6) + b"1" + b"}" * (ROOM // 6)),
    _json("a million maps", _ignored(b"[" + b"{}," * (ROOM // 3) + b"{}]")),
    _json("a million texts", _ignored(b"[" + b'"",' * (ROOM // 3) + b'""]')),
    _json("a string that never ends", b'"' + b'\\"' * (ROOM // 2)),
    _json("a number of 3 MB", _ignored(b"9" * ROOM)),
    _json("an infinite number", b'{"prompt":"x","temperature":1e999}'),
    _json("a field twice", b'{"prompt":"x","prompt":"y"}'),
    _json("17 choices", b'{"prompt":"x","n":17}'),
    _json("an infinite bias", b'{"prompt":"x","logit_bias":{"7":1e999}}'),
    _json("a million biases", _biased(b",".join(b'"%d":1' % n for n in range(200_000)))),
    _json("a schema of brackets", _formed(b"[" * defaults.MAX_SCHEMA_BYTES)),
    _json("a schema of maps within maps", _formed(b'{\\"a\\":' * 8000 + b"1" + b"}" * 8000)),
    _json("a schema of half a letter", _formed(b'{\\"const\\":\\"\\\\ud800\\"}')),
    _json("tools of many parts", _with_tools(b'{\\"a\\":[' + b"{}," * 6_000 + b"{}]}", n=40)),
    _json(
        "2,000 messages",
        b'{"messages":['
        + b'{"role":"user","content":"x"},' * 1999
        + b'{"role":"user","content":"x"}]}',
    ),
    _json(
        "a byte too much",
        b'{"prompt":"' + b"x" * defaults.MAX_BODY_BYTES + b'"}',
        ErrorCode.TOO_BIG,
    ),
    _json(
        "a prompt of 3 MB", b'{"prompt":"' + b"x" * ROOM + b'"}', ErrorCode.CONTEXT_LENGTH_EXCEEDED
    ),
    Attack(
        "exchange: bytes after the request",
        partial(goes_on_talking, data=b"x", flags=0),
        Ending.STREAM,
    ),
    Attack(
        "exchange: an end after the request",
        partial(goes_on_talking, data=b"", flags=FIN),
        Ending.STREAM,
    ),
    Attack("exchange: asks and leaves, again and again", asks_and_leaves, Ending.NONE),
    Attack("exchange: replays a request", replays, Ending.STREAM),
    Attack("exchange: is gone without a word", answers_no_ping, Ending.CONNECTION, KEEPALIVE_S),
    *dawdling(
        "exchange",
        GENERATE_PROTOCOL,
        LARGEST + bytes(200),
        defaults.REQUEST_TIMEOUT_S,
        defaults.OPEN_PER_BUCKET,
    ),
)
