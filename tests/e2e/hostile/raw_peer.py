"""A libp2p peer written by hand, so that every byte of it can be wrong. Start at `RawPeer.connect`.

TCP from an address of its own (all of 127/8 is this machine), multistream-select, Noise XX, yamux.
Nothing of the product is used, and of libp2p only its keys: what is broken there would be broken
here too.

Differs from a peer: nobody is held to anything. `send` ignores the window, a half handshake is one
step not taken, and a stream's id is whatever the attack says.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload
from noise.connection import Keypair, NoiseConnection

from tokenplace.peer.identity import Identity, throwaway_identity

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER: Final = ">BBHII"  # version, type, flags, stream, length
MULTISTREAM: Final = "/multistream/1.0.0"
MAX_NOISE_BYTES: Final = 65535 - 16  # of plaintext in one message
GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

_sources = (str(ipaddress.IPv4Address("127.66.0.1") + n) for n in itertools.count())


def delimited(text: str | bytes) -> bytes:
    """One message of multistream-select: its length as LEB128, and a newline at its end."""
    data = (text.encode() if isinstance(text, str) else text) + b"\n"
    length, prefix = len(data), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(prefix) + bytes([length]) + data


def header(kind: int, flags: int, stream_id: int, length: int, version: int = 0) -> bytes:
    """The twelve bytes of a yamux frame."""
    return struct.pack(HEADER, version, kind, flags, stream_id, length)


@dataclass(eq=False)
class RawPeer:
    """One connection. ended: the other side has closed it.

    is_reading: whether anything is taken from the socket; gives_window: whether what was taken
    is given back as window; is_polite: whether pings and streams are answered. All may be changed
    at any time.
    """

    tcp: trio.SocketStream
    source: str
    identity: Identity = field(default_factory=throwaway_identity)
    ended: trio.Event = field(default_factory=trio.Event)
    is_reading: bool = True
    gives_window: bool = True
    is_polite: bool = True
    n_pongs: int = 0
    streams: dict[int, RawStream] = field(default_factory=dict)
    _noise: NoiseConnection | None = None
    _unread: bytearray = field(default_factory=bytearray)
    _next_id: int = 1
    _writing: trio.Lock = field(default_factory=trio.Lock)

    @classmethod
    async def connect(cls, port: int, source: str = "") -> RawPeer:
        """A TCP connection and no more. source: its own address; a new one if none is given."""
        source = source or next(_sources)
        sock = trio.socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await sock.bind((source, 0))
            await sock.connect(("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        return cls(trio.SocketStream(sock), source)

    # ------------------------------------------------------------ before the streams

    async def say(self, data: bytes) -> None:
        """Send bytes as they are, below Noise."""
        await self.tcp.send_all(data)

    async def hear(self, n_bytes: int) -> bytes:
        """Exactly so many bytes, as they come. Raises `trio.BrokenResourceError` at an end."""
        heard = bytearray()
        while len(heard) < n_bytes:
            data = await self.tcp.receive_some(n_bytes - len(heard))
            if not data:
                raise trio.BrokenResourceError
            heard += data
        return bytes(heard)

    async def select(self, protocol: str) -> None:
        """Agree on a protocol of the whole connection."""
        await self.send(delimited(MULTISTREAM) + delimited(protocol))
        expected = delimited(MULTISTREAM) + delimited(protocol)
        answer = await self._receive_exactly(len(expected))
        assert answer == expected, answer

    async def begin_noise(self) -> NoiseConnection:
        """Agree on Noise, send its first message, read its second."""
        await self.select("/noise")
        noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
        noise.set_as_initiator()
        static = X25519PrivateKey.generate()
        noise.set_keypair_from_private_bytes(Keypair.STATIC, static.private_bytes_raw())
        noise.start_handshake()
        await self.say_message(bytes(noise.write_message()))
        noise.read_message(await self._hear_message())
        return noise

    def proof(self, noise: NoiseConnection, *, signer: Identity | None = None) -> bytes:
        """The third message's payload: who this is, and that it says so itself, unless another
        signs.
        """
        static = noise.noise_protocol.keypairs["s"].public_bytes
        key_pair = self.identity.key_pair
        signed = (signer or self.identity).key_pair.private_key.sign(
            b"noise-libp2p-static-key:" + static
        )
        payload = NoiseHandshakePayload(
            identity_key=key_pair.public_key.serialize(), identity_sig=signed
        )
        return bytes(payload.SerializeToString())

    async def secure(self) -> None:
        """A whole Noise handshake."""
        noise = await self.begin_noise()
        await self.say_message(bytes(noise.write_message(self.proof(noise))))
        self._noise = noise

    async def say_message(self, data: bytes) -> None:
        """One message of Noise, as it is, behind its length."""
        await self.say(struct.pack(">H", len(data)) + data)

    def encrypt(self, data: bytes) -> bytes:
        """A message of Noise with its length, not sent yet."""
        assert self._noise is not None, "no handshake yet"
        sealed = bytes(self._noise.encrypt(data))
        return struct.pack(">H", len(sealed)) + sealed

    async def send(self, data: bytes) -> None:
        """Send bytes, through Noise when that is up."""
        if self._noise is None:
            await self.say(data)
            return
        async with self._writing:
            for start in range(0, len(data), MAX_NOISE_BYTES):
                await self.say(self.encrypt(data[start : start + MAX_NOISE_BYTES]))

    async def _hear_message(self) -> bytes:
        (length,) = struct.unpack(">H", await self.hear(2))
        return await self.hear(length)

    async def _receive_exactly(self, n_bytes: int) -> bytes:
        while len(self._unread) < n_bytes:
            if self._noise is None:
                self._unread += await self.hear(n_bytes - len(self._unread))
            else:
                self._unread += self._noise.decrypt(await self._hear_message())
        data = bytes(self._unread[:n_bytes])
        del self._unread[:n_bytes]
        return data

    async def wait_closed(self) -> None:
        """Read and forget, below Noise, until the other side closes the connection."""
        try:
            while await self.tcp.receive_some(65536):
                pass
        except GONE:
            pass
        self.ended.set()

    # ------------------------------------------------------------ yamux

    async def begin_yamux(self) -> None:
        """All that comes before the first stream. `read_frames` must run from then on."""
        await self.secure()
        await self.select("/yamux/1.0.0")

    async def read_frames(self) -> None:
        """Take frames until the connection ends. Runs beside everything that uses streams."""
        replies, to_send = trio.open_memory_channel[bytes](math.inf)
        async with trio.open_nursery() as nursery:
            # In a task of its own: who waits for room to write must go on reading.
            nursery.start_soon(self._reply, to_send)
            with suppress(*GONE):
                await self._read_frames(replies)
            nursery.cancel_scope.cancel()
        for stream in self.streams.values():
            stream.ended.set()
        self.ended.set()

    async def _reply(self, replies: trio.MemoryReceiveChannel[bytes]) -> None:
        with suppress(*GONE):
            async for frame in replies:
                await self.send(frame)

    async def _read_frames(self, replies: trio.MemorySendChannel[bytes]) -> None:
        while True:
            while not self.is_reading:  # noqa: ASYNC110  # an attack just sets it
                await trio.sleep(0.05)
            _, kind, flags, stream_id, length = struct.unpack(
                HEADER, await self._receive_exactly(12)
            )
            body = await self._receive_exactly(length) if kind == DATA else b""
            if reply := self._take(kind, flags, stream_id, length, body):
                replies.send_nowait(reply)

    def _take(self, kind: int, flags: int, stream_id: int, length: int, body: bytes) -> bytes:
        """What one frame means, and the answer to it."""
        stream = self.streams.get(stream_id)
        if kind == PING and flags & SYN and self.is_polite:
            return header(PING, ACK, 0, length)
        if kind == PING and flags & ACK:
            self.n_pongs += 1
        elif kind == GO_AWAY:
            self.ended.set()
        elif flags & SYN and self.is_polite:  # a question of the target's own
            return header(WINDOW, RST, stream_id, 0)
        elif stream is not None:
            stream.take(body, flags)
            if body and self.gives_window and self.is_polite:
                return header(WINDOW, 0, stream_id, len(body))
        return b""

    async def ping(self) -> None:
        """Wait until the target has answered a ping, and so everything sent before it."""
        n_before = self.n_pongs
        await self.send(header(PING, SYN, 0, 7))
        while self.n_pongs == n_before and not self.ended.is_set():  # noqa: ASYNC110
            await trio.sleep(0.005)
        if self.ended.is_set():
            raise trio.BrokenResourceError

    async def open_stream(self, protocol: str = "") -> RawStream:
        """A new stream; with `protocol`, agreed on, or `trio.BrokenResourceError` if refused."""
        stream = self.new_stream()
        await self.send(header(WINDOW, SYN, stream.id, 0))
        if protocol:
            expected = delimited(MULTISTREAM) + delimited(protocol)
            await stream.send(expected)
            if await stream.receive_exactly(len(expected)) != expected:
                raise trio.BrokenResourceError
        return stream

    def new_stream(self) -> RawStream:
        """Count a stream as open of which the target knows nothing yet."""
        stream = self.streams[self._next_id] = RawStream(self, self._next_id)
        self._next_id += 2
        return stream


@dataclass(eq=False)
class RawStream:
    """One stream. ended: by its reset, its end or its connection's; was_reset says which.

    check: given all that came, once it has ended; raises if that is not what should have come.
    """

    peer: RawPeer
    id: int
    data: bytearray = field(default_factory=bytearray)
    was_reset: bool = False
    ended: trio.Event = field(default_factory=trio.Event)
    check: Callable[[bytes], object] | None = None
    _news: trio.Event = field(default_factory=trio.Event)

    async def send(self, data: bytes, flags: int = 0) -> None:
        """One frame of data, whatever the window says."""
        await self.peer.send(header(DATA, flags, self.id, len(data)) + data)

    def take(self, data: bytes, flags: int) -> None:
        """What came for this stream."""
        self.data += data
        self.was_reset = self.was_reset or bool(flags & RST)
        if flags & (FIN | RST):
            self.ended.set()
        self._news.set()
        self._news = trio.Event()

    async def receive_exactly(self, n_bytes: int) -> bytes:
        """Raises `trio.BrokenResourceError` when the stream ends before."""
        while len(self.data) < n_bytes:
            if self.ended.is_set():
                raise trio.BrokenResourceError
            news = self._news
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_then_cancel, self.ended, nursery.cancel_scope)
                await news.wait()
                nursery.cancel_scope.cancel()
        data = bytes(self.data[:n_bytes])
        del self.data[:n_bytes]
        return data


async def _then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
