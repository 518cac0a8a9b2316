"""One nats-py client, hardened: it connects once, and when it ends it says so at once and for good.

This module alone relies on nats-py's internals (2.16.0, pinned; `tests/contract/test_nats_py_internals.py` fails
first). What is kept: dialling, TLS, the handshake, its pings. What is replaced, and why (all measured on 2.16):

- the read loop and the parser: an exception in either ends reading silently while `is_connected` stays True; the parser
  cuts at more than spaces, so a stored subject can shift its arguments (see `wire.py`); a task, a queue and a header
  object per message are most of its time.
- the pending buffer and the flusher: what is written while disconnected goes out later, after its caller gave up.
- reconnecting: `Connection` makes a new link instead. One way back serves a cut line, an expired JWT and a server that
  hangs, and none of the states in between can be half left.
- closing: it drains into a socket nobody reads. Here the transport is aborted.
- TLS: it turns a plain stream into a TLS one, which then has no flow control, and waits for ever for the end of one
  whose handshake failed. Here a TLS stream is opened as such, and before the first byte.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import ParseResult

import msgspec
import nats.aio.client as nats_client
import nats.errors
import nkeys
from nats.aio.transport import TcpTransport

from mesh import logs
from mesh.errors import ConfigError, Disconnected
from mesh.jetstream import wire
from mesh.jetstream.listeners import Listeners
from mesh.jetstream.refusals import explain
from mesh.jetstream.wire import FrameReader, WireError
from mesh.telemetry import counter

WRITE_BYTES = 64 * 1024  # a batch of 40 events: the server works on it while the next one is sealed
WRITE_ACKS = 500  # some 50 KB of them
READ_BYTES = 256 * 1024  # one read of a full socket buffer; a batch of deliveries fits
DIAL_TIMEOUT_S = 5.0  # TCP, TLS and the handshake together
PING_INTERVAL_S = 5.0  # nats-py's own; three unanswered in a row end the link. The connection's watchdog is quicker

PERMISSION_ERRORS = counter(
    "mesh.nats.permission_errors", unit="{error}", watch="above 0: an import is missing, or somebody tries subjects"
)

log = logs.get("nats")


class _Claims(msgspec.Struct):
    exp: float = 0


class Credentials(NamedTuple):
    """What a creds file holds. The seed signs the server's nonce and is kept as bytes, never as a path."""

    jwt: str
    seed: bytes

    @classmethod
    def parse(cls, content: bytes) -> Credentials:
        """Read the two sections of a creds file.

        Raises:
            ConfigError: A section is missing, or the seed is none.
        """
        lines = [line.strip() for line in content.splitlines()]
        try:
            jwt = lines[lines.index(b"-----BEGIN NATS USER JWT-----") + 1]
            seed = lines[lines.index(b"-----BEGIN USER NKEY SEED-----") + 1]
            nkeys.from_seed(bytearray(seed)).wipe()
            return cls(jwt.decode("ascii"), seed)
        except Exception:  # noqa: BLE001 - nkeys raises whatever its base32 does; and no cause, which would show the seed
            raise ConfigError("not a NATS creds file", expected="a user JWT and a user nkey seed") from None

    @property
    def expires_s(self) -> float | None:
        """When the JWT ends, Unix seconds; None where it says nothing of it, or is not to be read."""
        payload = self.jwt.split(".")[1:2]
        try:
            claims = msgspec.json.decode(base64.urlsafe_b64decode(payload[0] + "=="), type=_Claims)
        except (IndexError, ValueError):
            return None
        return claims.exp or None

    def sign(self, nonce: str) -> bytes:
        """The server's nonce signed, in base64."""
        key = nkeys.from_seed(bytearray(self.seed))
        try:
            return base64.b64encode(key.sign(nonce.encode()))
        finally:
            key.wipe()


class _TlsTransport(TcpTransport):
    """TLS from the first byte: nothing is said in the clear, and nothing that came in the clear is believed."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py's
        self._context = context

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Connect, shake hands, and check the server's certificate against the name we were given for it."""
        async with asyncio.timeout(connect_timeout):
            self._io_reader, self._io_writer = await asyncio.open_connection(
                uri.hostname, uri.port, ssl=self._context, limit=buffer_size
            )

    async def connect_tls(self, *_: object, **__: object) -> None:
        """Asked for once more by nats-py after `connect`: it is done."""


class Link(nats_client.Client):
    """A connected client that hands every message to *listeners* in the read loop, without a task or queue."""

    def __init__(self, listeners: Listeners, on_gone: Callable[[Link], None]) -> None:
        super().__init__()
        self._transport: Any  # nats-py types it too narrowly for what is used here
        self._reader = FrameReader(listeners.deliver, listeners.run)
        self._on_gone = on_gone
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._acks: list[str] = []  # to be written behind `_out`
        self._ended = False
        self.bytes_in = 0
        self.reason = ""  # the last error of the server or the system; their words, so no secret is in it

    async def dial(
        self, servers: Sequence[str], *, name: str, credentials: Credentials | None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect and shake hands, once.

        Raises:
            Disconnected: Nobody answered, or the server refused us; says what it said.
        """
        if vars(nats_client)["parse_email"] is not None:  # it decodes header values and splits them at bare LFs
            raise ConfigError("the package fast-mail-parser changes what NATS headers mean", next="uninstall it")
        options: dict[str, Any] = {
            "reconnect_time_wait": 0.05,
            "connect_timeout": DIAL_TIMEOUT_S,
            "ping_interval": PING_INTERVAL_S,
        }
        if tls is not None:
            options |= {"tls": tls, "tls_handshake_first": True}
        if credentials is not None:
            options |= {"user_jwt_cb": credentials.jwt.encode, "signature_cb": credentials.sign}
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self.connect(
                    servers=list(servers),
                    name=name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    max_outstanding_pings=2,
                    pending_size=0,
                    error_cb=self._report,
                    **options,
                )
        except Exception as error:  # noqa: BLE001 - nats-py lets anything out
            said = self.reason or _sentence(error)
            await self.end()
            expires_s = None if credentials is None else credentials.expires_s
            refusal = explain(said, expires_s=expires_s, now_s=time.time())
            if refusal is None:
                raise Disconnected("cannot connect to NATS", got=said) from None
            raise Disconnected("NATS will not have us", got=said, next=refusal.next, reason=refusal.reason) from None
        except BaseException:
            self._drop()
            raise
        if self._ended:
            raise Disconnected("NATS closed the connection at once")

    async def _connect_to_server(self, s: Any) -> None:
        if "tls" not in self.options:
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        self._transport = _TlsTransport(self.options["tls"])
        await self._transport.connect(s.uri, READ_BYTES, DIAL_TIMEOUT_S)

    # --- out ---------------------------------------------------------------------------------------------------------

    def send(self, frames: bytes) -> None:
        """Write at the end of this turn of the loop, with everything else of this turn, or once it is much."""
        if self._acks:
            self._join_acks()
        elif not self._out:
            asyncio.get_running_loop().call_soon(self._write_out)
        self._out.append(frames)
        self._out_bytes += len(frames)
        if self._out_bytes >= WRITE_BYTES:
            self._write_out()

    def ack(self, reply: str) -> None:
        """`send` an ack to *reply*, which `AckSubject` has read: those of a turn become one text in one go."""
        acks = self._acks
        if not acks and not self._out:
            asyncio.get_running_loop().call_soon(self._write_out)
        acks.append(reply)
        if len(acks) >= WRITE_ACKS:
            self._write_out()

    def _join_acks(self) -> None:
        frames = wire.ack_frames(self._acks)
        self._acks.clear()
        self._out.append(frames)
        self._out_bytes += len(frames)

    def _write_out(self) -> None:
        if self._acks:
            self._join_acks()
        if self._out and not self._ended:
            frames = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out = []
            self._out_bytes = 0
            self._put(frames)

    def _put(self, data: bytes) -> None:
        """Hand *data* to the kernel. What is written to a link that dies is lost, and the answers will not come.

        uvloop's transport raises once it is closed, a turn or two before the read loop hears of the end and tells it
        everybody, with this reason where there is no better.
        """
        try:
            self._transport.write(data)
        except (RuntimeError, OSError) as error:
            self.reason = self.reason or _sentence(error)

    @property
    def unsent_bytes(self) -> int:
        """What the kernel has not taken yet."""
        socket = self._socket()
        return self._out_bytes + (socket.get_write_buffer_size() if socket else 0)

    def _socket(self) -> asyncio.WriteTransport | None:
        writer: asyncio.StreamWriter | None = self._transport and self._transport._io_writer  # noqa: SLF001
        return writer.transport if writer else None

    def ping(self) -> asyncio.Future[bool]:
        """Send a PING behind everything written so far; done at its PONG, cancelled when the link ends."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._ended:
            future.cancel()
            return future
        self._write_out()
        self._pongs.append(future)
        self._put(nats_client.PING_PROTO)
        return future

    # --- in ----------------------------------------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        try:
            while not self._ended:
                data = await self._transport.read(READ_BYTES)
                if not data:
                    raise nats.errors.UnexpectedEOF
                self.bytes_in += len(data)
                for line in self._reader.feed(data):
                    await self._control(line)
        except Exception as error:  # noqa: BLE001 - whatever it is, the link ends loudly
            self.reason = _sentence(error)
            if isinstance(error, WireError):
                log.error("nats_protocol_broken", error=self.reason)
            await self._process_op_err(error)

    async def _control(self, line: bytes) -> None:
        if line.startswith(b"PING"):
            self._put(nats_client.PONG_PROTO)
        elif line.startswith(b"PONG"):
            await self._process_pong()
        elif line.startswith(b"INFO "):
            await self._learn(line[5:])
        elif line.startswith(b"-ERR"):
            said = line[4:].strip().decode("utf-8", "replace")
            self.reason = said[:200]
            await self._process_err(said.lower())
        elif not line.startswith(b"+OK"):
            raise WireError("an operation NATS does not have")

    async def _learn(self, info: bytes) -> None:
        try:
            news = msgspec.json.decode(info, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise WireError("an INFO that is no JSON object") from None
        self._server_info = news
        self._max_payload = news.get("max_payload", self._max_payload)
        await self._process_info(news)

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():  # given up on; nats-py's own version raises, and stops reading for good
                future.set_result(True)

    async def _report(self, error: Exception) -> None:
        self.reason = _sentence(error)
        if "permissions violation" in str(error):
            PERMISSION_ERRORS.add(1)
            log.error("nats_permission_denied", error=str(error)[:200])

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._drop()
        await super()._close(status, do_cbs)

    async def end(self) -> None:
        """Cut the connection. What the kernel has not taken is gone; `ping` first to know that it has."""
        with contextlib.suppress(Exception):
            await self._close(nats_client.Client.CLOSED, do_cbs=False)
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                await asyncio.wait([task], timeout=1.0)

    def _drop(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._out = []
        self._acks = []
        self._pending = []
        self._pending_data_size = 0
        for future in self._pongs:
            future.cancel()
        if socket := self._socket():
            socket.abort()  # close() would wait for a peer that may never read
        self._on_gone(self)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
