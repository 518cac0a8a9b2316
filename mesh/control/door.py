"""The control plane's door: NATS requests `ctl.<noun>.<verb>` in the tenant account. JSON in; JSON, or a problem, out.

    {"author": "ada", "files": "<packed>", ...}   ->   {"revision": 7, ...}   or   {"error": {"code": ..., ...}}

Each request shows that it comes from an operator (`proof.py`): the broker carries it, and could send others.
No workload can reach it: its account imports no `ctl.` subject but the notices and an agent's own enrolment
(`enrol.py`), so only the control plane's own credentials get an answer. Policies come packed (`pack`): zlib and base64
inside one message, unpacked within a bound.
A request may name an inbox as `progress`: each step is told there as it begins.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mesh import logs
from mesh.control.proof import HEADER
from mesh.control.reconcile import now_ms
from mesh.errors import BadAttribute, MeshError, NotAttested, NotFound, TooLarge
from mesh.jetstream.wire import parse_headers, publish_frame

if TYPE_CHECKING:
    from mesh.control.policies import Policies
    from mesh.control.proof import Proofs
    from mesh.jetstream.connection import Connection

MAX_PACKED_BYTES = 900_000  # below NATS' max_payload of 1 MiB, with room for what stands around it
MAX_UNPACKED_BYTES = 64 * 1024 * 1024  # four times what the loader takes: its files are counted in characters

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

log = logs.get("door")


# --- files in a request ----------------------------------------------------------------------------------------------


class _Files(msgspec.Struct, frozen=True):
    yaml: dict[str, str]
    fixtures: dict[str, bytes]


def pack(files: Mapping[str, str], fixtures: Mapping[str, bytes]) -> str:
    """Policies as text for a request.

    Raises:
        TooLarge: They do not fit into one message.
    """
    data = b64encode(zlib.compress(msgspec.json.encode(_Files(dict(files), dict(fixtures)))))
    if len(data) > MAX_PACKED_BYTES:
        raise TooLarge(
            f"the policies have {len(data)} bytes when packed, limit {MAX_PACKED_BYTES}",
            limit=MAX_PACKED_BYTES,
            size=len(data),
            next="split the tenants into sets of their own, or take fixtures out",
        )
    return data.decode()


def unpack(text: object) -> tuple[dict[str, str], dict[str, bytes]]:
    """The inverse of `pack`: YAML and fixtures, by name.

    Raises:
        BadAttribute: Nothing that `pack` made.
        TooLarge: It unpacks to more than `MAX_UNPACKED_BYTES`; no more than that was unpacked.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_PACKED_BYTES:
            raise ValueError
        packed = zlib.decompressobj()
        data = packed.decompress(b64decode(text, validate=True), MAX_UNPACKED_BYTES)
        if packed.unconsumed_tail:
            raise TooLarge("the packed policies are too large", limit=MAX_UNPACKED_BYTES, next="send fewer files")
        files = msgspec.json.decode(data, type=_Files)
    except (ValueError, binascii.Error, zlib.error, msgspec.MsgspecError, RecursionError) as error:
        raise BadAttribute(
            "`files` are no packed policies", expected="what `mesh policy apply` sends", next="use that command"
        ) from error
    return files.yaml, files.fixtures


# --- the door --------------------------------------------------------------------------------------------------------


class ControlDoor:
    """Answers requests, each in a task of its own: a question is answered while an apply waits for its agents.

    Args:
        connection: The control plane's, in the tenant account.
        handlers: By verb.
        proofs: What a request has to show.
        noun: The second token of the subject.
    """

    def __init__(
        self, connection: Connection, handlers: Mapping[str, Handler], proofs: Proofs, *, noun: str = "policy"
    ) -> None:
        self._connection = connection
        self._handlers = dict(handlers)
        self._proofs = proofs
        self._noun = noun

    async def run(self) -> None:
        """Answer until cancelled."""
        async with anyio.create_task_group() as group:

            def on_request(subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
                if reply:
                    group.start_soon(self._answer, subject, reply, headers, data)

            listener = self._connection.listen(f"ctl.{self._noun}.*", on_request)
            try:
                await anyio.sleep_forever()
            finally:
                listener.close()

    async def _answer(self, subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        verb = subject.rpartition(".")[2]
        try:
            self._check(subject, headers, data)
            answer = await self._handle(verb, data)
        except MeshError as error:
            answer = {"error": error.as_dict()}
        except Exception as error:
            log.exception("request_failed", error, verb=verb)  # noqa: PLE1205, TRY401 - ours takes the error
            answer = {"error": MeshError("the control plane failed", next="read its log").as_dict()}
        try:
            await self._connection.publish(reply, msgspec.json.encode(answer))
        except MeshError as error:
            log.warning("answer_not_sent", verb=verb, code=error.code)

    def _check(self, subject: str, headers: bytes | None, data: bytes) -> None:
        """Raise unless an operator asks exactly this."""
        given = parse_headers(headers).get(HEADER, "")
        try:
            self._proofs.check(given, subject=subject, body=data, now_ms=now_ms())
        except NotAttested as error:
            log.error("request_not_attested", subject=subject, code=error.code, got=error.got)
            raise

    async def _handle(self, verb: str, data: bytes) -> dict[str, Any]:
        handler = self._handlers.get(verb)
        if handler is None:
            raise NotFound(f"no request ctl.{self._noun}.{verb}", expected=", ".join(sorted(self._handlers)), got=verb)
        try:
            request = msgspec.json.decode(data or b"{}", type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadAttribute("the request is no JSON object", expected="a JSON object") from error
        return await handler(request)


# --- what it answers about policies ----------------------------------------------------------------------------------


class _Change(msgspec.Struct, frozen=True):
    files: str = ""
    revision: int | None = None
    author: str = ""
    reason: str = ""
    skip_backlog: bool = False
    expected: int | None = None
    progress: str = ""


def policy_handlers(policies: Policies) -> dict[str, Handler]:
    """`apply`, `rollback`, `status` and `history` of one tenant, as requests."""

    async def apply(request: dict[str, Any]) -> dict[str, Any]:
        asked = _read(request)
        files, fixtures = unpack(asked.files)
        told = Told(policies.connection, asked.progress)
        applied = await policies.apply(
            files,
            fixtures,
            author=asked.author,
            reason=asked.reason,
            skip_backlog=asked.skip_backlog,
            expected=asked.expected,
            progress=told,
        )
        return applied.as_dict()

    async def rollback(request: dict[str, Any]) -> dict[str, Any]:
        asked = _read(request)
        told = Told(policies.connection, asked.progress)
        applied = await policies.rollback(
            asked.revision, author=asked.author, reason=asked.reason, skip_backlog=asked.skip_backlog, progress=told
        )
        return applied.as_dict()

    async def status(_request: dict[str, Any]) -> dict[str, Any]:
        return await policies.status()

    async def history(request: dict[str, Any]) -> dict[str, Any]:
        limit = request.get("limit", 20)
        if not isinstance(limit, int) or limit < 1:
            raise BadAttribute("`limit` is no number", expected="a whole number from 1")
        return {"tenant": policies.tenant, "revisions": await policies.history(limit)}

    return {"apply": apply, "rollback": rollback, "status": status, "history": history}


class Told:
    """Sends each step to the inbox that a request names; only an inbox, so that nothing else can be written to."""

    def __init__(self, connection: Connection, inbox: str) -> None:
        self._connection = connection
        self._inbox = inbox if inbox.startswith("_INBOX_") else ""

    def __call__(self, step: str) -> None:
        """Say that *step* begins; who asked may have gone."""
        if self._inbox:
            try:
                self._connection.write(publish_frame(self._inbox, step.encode()))
            except MeshError as error:
                log.warning("progress_not_sent", code=error.code)


def _read(request: dict[str, Any]) -> _Change:
    try:
        return msgspec.convert(request, _Change)
    except msgspec.ValidationError as error:
        raise BadAttribute(f"the request is malformed: {error}", expected="what `mesh policy` sends") from error
