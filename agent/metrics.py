"""The agent's metrics, and the few moments at which they count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import __version__, native
from mesh.jetstream.tls import watch_dates
from mesh.telemetry import counter, gauge, histogram

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.outbound import Outbound
    from agent.receipts import Flight
    from agent.settings import AgentSettings
    from agent.spool.spool import Spool
    from mesh.telemetry import Buckets

ACCEPTED = counter(
    "mesh.agent.accepted", "{event}", "events that got a receipt; falling while callers post: see refused"
)
UNREAD = counter("mesh.agent.unread", "{event}", "accepted but readable by nobody: add a view, or stop sending them")
REFUSED = counter(
    "mesh.agent.refused",
    "{request}",
    "by door and code: 4xx is the caller's to fix, 503 ours; `next` in the answer says how",
)
PUBLISHED = counter(
    "mesh.agent.published", "{copy}", "by view; against accepted it shows how many views an event feeds"
)
DUPLICATES = counter(
    "mesh.agent.duplicates", "{copy}", "copies the stream had already: callers repeat what was accepted"
)
UNDURABLE = counter(
    "mesh.agent.undurable", "{copy}", "given up: the stream is away, full, or refuses us; callers got 503"
)
DURATION = histogram(
    "mesh.agent.request.duration", "s", "by door and status class; p99 above 5 ms: the stream acks slowly"
)
IN_FLIGHT = gauge("mesh.agent.in_flight", "{event}", "accepted and not acked; at max_waiting_events callers are slowed")
REVISION = gauge(
    "mesh.agent.policy.revision", "{revision}", "behind the control plane's: notices and polls do not arrive"
)
ENROLMENTS = counter(
    "mesh.agent.enrolments", "{certificate}", "by code: another than ok again and again, and the key ends unrenewed"
)
LEFT = gauge(
    "mesh.agent.certificate.left", "s", "below 2/5 of a certificate's 24 h: it is not renewed; 0: nothing is sent"
)
ANEW = counter(
    "mesh.agent.key.anew", "{copy}", "in flight at the cut of our key, and sent anew: a revocation came without notice"
)
SPOOLED = counter("mesh.agent.spooled", "{copy}", "kept on disk: their stream did not acknowledge; see spool.copies")
DRAINED = counter(
    "mesh.agent.spool.drained", "{copy}", "taken by their stream at last; flat while spool.copies is not: stuck"
)
SPOOL_REFUSED = counter(
    "mesh.agent.spool.refused",
    "{copy}",
    "by reason: policy forbids to send what was accepted; `spool inspect` lists it",
)
SPOOL_COPIES = gauge("mesh.agent.spool.copies", "{copy}", "on disk; above 0: a stream cannot be reached, or is drained")
SPOOL_BYTES = gauge("mesh.agent.spool.bytes", "By", "of spool_max_bytes, at which callers get 503 spool-full")
SPOOL_OLDEST = gauge("mesh.agent.spool.oldest", "s", "age of the oldest copy on disk; rising: its stream is still away")
INFO = gauge(
    "mesh.agent.info",
    "{agent}",
    "always 1: whose process this is, to join with what has no such labels; native=false: slower, in Python alone",
)
CONNECTED = gauge("mesh.nats.connected", "{connection}", "0: NATS is away, or will not have us; /readyz says which")
FETCHED = gauge(
    "mesh.pull.last_fetch_age", "s", "above 15: connected, and the server answers no pull; it beats every 5 s"
)
READY = gauge("mesh.agent.ready", "1", "0: /readyz says why")

_CLASSES = {n: f"{n}xx" for n in range(1, 6)}
_durations: dict[tuple[str, int], Buckets] = {}  # by door and status: a few doors, and the statuses of `mesh.errors`
for _status in ("2xx", "5xx"):
    DURATION.at(door="intake", status=_status)
for _code in ("denied", "draining", "overloaded", "spool-full", "stream-unavailable", "internal"):
    REFUSED.at(door="intake", code=_code)  # there before the first: a rate of a series that was not there is none
_accepted = ACCEPTED.at()
_unread = UNREAD.at()
_duplicates = DUPLICATES.at()
_undurable = UNDURABLE.at()


def request(door: str, status: int, seconds: float) -> None:
    """One request was answered."""
    series = _durations.get((door, status))
    if series is None:
        series = _durations[door, status] = DURATION.at(door=door, status=_CLASSES.get(status // 100, "other"))
    series.record(seconds)


def refused(door: str, code: str) -> None:
    """One request got a problem document."""
    REFUSED.add(1, door=door, code=code)


def landed(flight: Flight) -> None:
    """Every copy of a request is durable or given up."""
    _accepted.value += flight.accepted
    _unread.value += flight.unread
    _duplicates.value += flight.duplicates
    _undurable.value += flight.undurable


def watch_spool(spool: Spool) -> list[Callable[[], None]]:
    """The same for the spool."""
    return [
        SPOOL_COPIES.read(lambda: spool.copies),
        SPOOL_BYTES.read(lambda: spool.bytes),
        SPOOL_OLDEST.read(spool.oldest_s),
    ]


def is_of(settings: AgentSettings, base: Path) -> list[Callable[[], None]]:
    """Say whose process this is, and until when it may connect."""
    labels = {"tenant": settings.tenant, "team": settings.team, "agent": settings.name, "version": __version__}
    labels["native"] = "false" if native.compiled is None else "true"
    watched = [INFO.read(lambda: 1.0, **labels)]
    if settings.nats_cert_file:
        watched += watch_dates(base / settings.nats_cert_file)
    return watched


def watch(
    outbound: Outbound, ready: Callable[[], bool], left_s: Callable[[], float], connected: Callable[[], bool]
) -> list[Callable[[], None]]:
    """Read these levels at each scrape; calling what is returned ends that."""
    return [
        CONNECTED.read(connected, role="agent"),
        IN_FLIGHT.read(lambda: outbound.room.used),
        REVISION.read(lambda: outbound.revision),
        READY.read(lambda: float(ready())),
        LEFT.read(left_s),
    ]
