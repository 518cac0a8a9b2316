"""Reads all that is stored of one source, and the marks of its agents, and has it checked (`mesh/completeness.py`).

What was asked about is read with some time before it. Where numbers lack then, everything that is stored is read: a
copy that waited in a spool stands far from its neighbours.

A source goes on while it is checked. So where the audit trail ends is noted first, then where each stream ends, and
each is read up to there: whatever the marks that count name as stored is among the copies.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import msgspec

from mesh import audit
from mesh.base64url import unb64u
from mesh.completeness import Checking
from mesh.control.reader import ANY_VIEW, reading
from mesh.control.trail import last_sequence, stored_trail
from mesh.errors import ConfigError, InputError, NotFound, RequestFailed, Unavailable, VerificationError
from mesh.event import decode
from mesh.findings import Copy, Range, Report
from mesh.jetstream.manage import api, read_actual
from mesh.marks import Mark
from mesh.sequences import began_ms, read
from mesh.statements import verify_ed25519
from mesh.subjects import stream_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.audit_check import Stored
    from mesh.control.reader import Events
    from mesh.identity import Keyring
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.topology import Config
    from mesh.keys import Certificate
    from mesh.signing import Received, Verified

LEAD_MS: Final = 900_000  # read before what is asked about: a mark comes within 15 minutes of what it names
AUDIT_LEAD_MS: Final = 600_000  # clocks differ, and marks queue
WAIT_S: Final = 10.0  # for the next stored message, while there is one
_NO_MESSAGE = 10037  # JetStream's code
_ESCAPES = (b"\\u", b"\\/")  # other spellings of a source in JSON


class Stores(NamedTuple):
    """Where what is checked comes from.

    Attributes:
        connection: With the control plane's credentials in the tenant's account.
        verify: V1 to V9, fetching what that takes.
        certificate: The certificate of a key id, or None.
        keyring: Says which keys are revoked.
        site: Of the streams.
    """

    connection: Connection
    verify: Callable[[Received], Awaitable[Verified]]
    certificate: Callable[[str], Awaitable[Certificate | None]]
    keyring: Keyring
    site: str


async def check_source(stores: Stores, source: str, asked: Range, *, view: str = "", now_ms: int) -> Report:
    """Check everything stored of *source* within *asked*.

    Args:
        stores: Where it comes from.
        source: The CloudEvents source.
        asked: From when to when.
        view: Only copies in this view; empty for every view.
        now_ms: Unix milliseconds.

    Raises:
        NotFound: Nothing of this source is stored, and no mark names it.
        Unavailable: A stream stopped answering, or the connection ended meanwhile.
    """
    streams = await event_streams(stores.connection, stores.site)
    kept_ms = now_ms - min((config["max_age"] // 1_000_000 or now_ms for config in streams.values()), default=now_ms)
    read_ms = max(asked.from_ms - LEAD_MS, 0)
    filters = dict.fromkeys(streams, f"ev.{stores.site}.{view or ANY_VIEW}.>")
    while True:
        floor_ms = max(kept_ms, read_ms)
        checking = Checking(source, asked, floor_ms=floor_ms, now_ms=now_ms)
        trail_end = await last_sequence(stores.connection)
        await _read_copies(stores, checking, source, filters, read_ms)
        if trail_end:
            await _read_marks(stores, checking, source, max(asked.from_ms, floor_ms), floor_ms, last=trail_end)
        report = checking.report([view] if view else [])
        if not read_ms or not any(found.what in {"missing", "pending", "misplaced"} for found in report.findings):
            break
        read_ms = 0
    if not report.counted and not report.copies and not report.findings:
        raise NotFound(
            f"nothing of the source {source} is stored in that time",
            expected="a CloudEvents source that an agent publishes",
            got=source,
            next="`mesh events tail --all` shows what is stored; leave out --from, --to and --view",
        )
    return report


async def moment_of(connection: Connection, site: str, stream: str, seq: int) -> int:
    """When message *seq* of a stream, or the next one that is there, was stored: Unix milliseconds.

    Raises:
        NotFound: There is none from that number on.
        ConfigError: There is no such event stream.
    """
    try:
        found = await api(connection, f"STREAM.MSG.GET.{stream}", {"seq": seq, "next_by_subj": f"ev.{site}.>"})
    except RequestFailed as error:
        if error.details["err_code"] == _NO_MESSAGE:
            raise NotFound(f"{stream} has no message from {seq} on", got=f"{stream}:{seq}") from error
        raise ConfigError(f"no event stream is called {stream}", expected="as `mesh events tail` shows it") from error
    return _ms(found["message"]["time"])


async def event_streams(connection: Connection, site: str) -> dict[str, Config]:
    """The event streams of a site, whatever the policies of now publish into them, and how each is configured."""
    actual = await read_actual(connection)
    return {name: config for name, config in actual.streams.items() if name.startswith(stream_name(site, ""))}


# --- copies ----------------------------------------------------------------------------------------------------------


async def _read_copies(stores: Stores, checking: Checking, source: str, filters: dict[str, str], since_ms: int) -> None:
    """Take what each stream holds at this moment: what is stored meanwhile is left out."""
    needle = msgspec.json.encode(source)
    since = _rfc3339(since_ms) if since_ms else ""
    tails = await _tails(stores.connection, filters, since_ms)
    subjects = {name: [filters[name]] for name in tails}
    lost = False

    def lose() -> None:
        nonlocal lost
        lost = True

    forget = stores.connection.on_disconnect(lose)
    try:
        async with reading(stores.connection, subjects, new_only=False, since=since) as (_, events):
            while tails and not lost:
                received = await _next(events, tails)
                end = tails[received.stream]
                if received.sequence >= end:
                    del tails[received.stream]
                known = needle in received.body or any(escape in received.body for escape in _ESCAPES)
                if known and received.sequence <= end:
                    await _take(stores, checking, source, received)
    finally:
        forget()
    if lost:  # what was on its way comes again only behind what follows it
        raise Unavailable("the connection to NATS ended while the streams were read", next="try again")


async def _tails(connection: Connection, filters: dict[str, str], since_ms: int) -> dict[str, int]:
    """The number of the newest message of each stream that its filter matches, where one was stored since then."""
    since = datetime.fromtimestamp(since_ms / 1000, UTC)
    tails: dict[str, int] = {}
    for stream, subjects in filters.items():
        try:
            found = await api(connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subjects})
        except RequestFailed as error:
            if error.details["err_code"] == _NO_MESSAGE:
                continue
            raise
        if datetime.fromisoformat(found["message"]["time"]) >= since:
            tails[stream] = int(found["message"]["seq"])
    return tails


async def _next(events: Events, tails: dict[str, int]) -> Received:
    """The next message of a stream that was not read to its end yet."""
    try:
        with anyio.fail_after(WAIT_S):
            while (received := await events.receive()).stream not in tails:
                pass
    except TimeoutError:
        raise Unavailable(f"no stream gave its next message within {WAIT_S:g} s", next="try again") from None
    return received


async def _take(stores: Stores, checking: Checking, source: str, received: Received) -> None:
    """Judge one message that may be of the source."""
    try:
        verified = await stores.verify(received)
    except VerificationError as error:
        said = _said(received.body)
        if said.get("source") == source:
            checking.refused(_copy(received, said, signer=""), error.code)
        return
    if verified.fields["source"] == source:
        checking.copy(_copy(received, verified.fields, signer=str(verified.spiffe_id)))


def _said(body: bytes) -> dict[str, Any]:
    """What a body says that nobody vouches for."""
    try:
        return decode(body)
    except InputError:
        return {}


def _copy(received: Received, fields: dict[str, Any], *, signer: str) -> Copy:
    parts = received.subject.split(".", 3)
    return Copy(
        stream=received.stream,
        seq=received.sequence,
        stream_ms=received.stream_ms,
        view=parts[2],
        signer=signer,
        event_id=str(fields.get("id", "")),
        message=received.msg_ids[0] if received.msg_ids else "",
        number=read(fields.get("sequence")),
    )


# --- marks -----------------------------------------------------------------------------------------------------------


async def _read_marks(
    stores: Stores, checking: Checking, source: str, from_ms: int, floor_ms: int, *, last: int
) -> None:
    """Take the marks of every epoch that has to do with the source, whatever else they are about.

    Message *last* of the trail is the last that is read: later marks may name what was stored after the copies were
    read.
    """
    began = [began_ms(epoch) for epoch in checking.epochs]
    since_ms = max(min([*began, from_ms]), floor_ms) - AUDIT_LEAD_MS
    found: list[tuple[Stored, str, Mark, str]] = []
    ours = set(checking.epochs)
    async for stored in stored_trail(stores.connection, since=_rfc3339(max(since_ms, 0)), last=last):
        record = _mark_record(stored)
        if record is None:
            continue
        try:
            mark, signature = Mark.parse(record.facts)
        except ValueError as error:
            if record.facts.get("epoch") in ours:
                checking.bad_mark(record.writer, stored.stream_seq, str(error))
            continue
        found.append((stored, record.writer, mark, signature))
        if any(row.source == source for row in mark.rows):
            ours.add(mark.epoch)
    for stored, writer, mark, signature in found:
        if mark.epoch not in ours:
            continue
        try:
            if stored.subject != audit.SUBJECT + writer.rpartition(".")[0]:
                raise ValueError(f"it is stored on {stored.subject}")
            checking.mark(mark, await _signer(stores, mark, signature, stored.stream_ms))
        except ValueError as error:
            checking.bad_mark(writer, stored.stream_seq, str(error))


def _mark_record(stored: Stored) -> audit.Record | None:
    try:
        record = audit.read(stored.line)
    except ValueError:
        return None  # `mesh audit verify` says so; a mark that cannot be read lacks in its chain
    return record if record.kind == audit.SEQUENCE_MARK else None


async def _signer(stores: Stores, mark: Mark, signature: str, stored_ms: int) -> str:
    """Who signed *mark*.

    Raises:
        ValueError: Nobody who is believed.
    """
    certificate = await stores.certificate(mark.kid)
    if certificate is None:
        raise ValueError("the certificate of its key is not stored")
    if not certificate.not_before_ms <= mark.signed_ms <= certificate.not_after_ms:
        raise ValueError("its key was not in force when it was signed")
    revoked_ms = stores.keyring.refused_from(certificate)
    if revoked_ms is not None and stored_ms >= revoked_ms:
        raise ValueError("its key was revoked when it was stored")
    if not verify_ed25519(certificate.public_key, mark.signed(certificate.spiffe_id), unb64u(signature)):
        raise ValueError("its signature does not fit")
    return str(certificate.spiffe_id)


def _ms(text: str) -> int:
    """Unix milliseconds of a server's time stamp."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
