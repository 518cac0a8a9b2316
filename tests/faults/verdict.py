"""What a run comes to: every stored copy verified again, and held against what was accepted, handled and buried."""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec

from mesh.cli.session import Session, operator_session
from mesh.control.reader import reading
from mesh.errors import MeshError, VerificationError
from mesh.jetstream.manage import _pages, api, stream_info
from mesh.signing import Received
from tests.faults.adapter import CLEAR
from tests.faults.astray import Fact, astray
from tests.faults.consumer import is_poison
from tests.faults.notes import Accepted, Handled, effects, reordered_in_stream
from tests.faults.world import SOURCES, STREAMS, VIEWS, Reader, World

MUSTS = (
    "lost",
    "misplaced",
    "effects_twice",
    "reordered_per_key",
    "reordered_in_stream",
    "unsigned",
    "unmasked",
    "in_clear_on_disk",
    "buried_without_reason",
    "unexpected_answers",
    "adapters_ended",
    "overstayed",
)  # none of these may be anything but 0
OF_READERS = (
    "delivered",
    "duplicates_seen",
    "effects",
    "effects_twice",
    "not_delivered",
    "without_effect",
    "dead_letters",
    "not_buried",
    "buried_twice",
    "buried_without_reason",
    "reordered_per_key",
)  # summed over the subscriptions
EXPECTED = {"202", "503", "429"}
SETTLE_S = 300.0
POLL_S = 0.5


@dataclass(slots=True)
class Stored:
    """What is in the event streams."""

    places: dict[str, dict[str, tuple[str, int]]] = field(default_factory=dict)  # of first copies, by view and id
    again: dict[str, set[tuple[str, int]]] = field(default_factory=dict)  # of copies that came later, by id
    facts: dict[tuple[str, int], Fact] = field(default_factory=dict)  # of every copy, by its place
    copies: int = 0
    unsigned: int = 0
    unmasked: int = 0

    async def read(self, session: Session) -> None:
        """Read and verify every message of every event stream."""
        for stream in STREAMS:
            info = await stream_info(session.connection, stream)
            count = info["state"]["messages"]
            filters = {stream: info["config"]["subjects"]}
            async with reading(session.connection, filters, new_only=False) as (_, events):
                for _ in range(count):
                    with anyio.fail_after(60):
                        received = await events.receive()
                    await self._take(session, received)

    async def _take(self, session: Session, received: Received) -> None:
        self.copies += 1
        try:
            fields = (await session.verify(received)).fields
        except VerificationError:
            self.unsigned += 1
            return
        view, event_id = str(fields["view"]), str(fields["id"])
        self.facts[received.stream, received.sequence] = Fact.of(fields, received)
        clear = CLEAR.encode() in received.body
        self.unmasked += clear and view == "masked"
        if event_id in self.places.setdefault(view, {}):
            self.again.setdefault(event_id, set()).add((received.stream, received.sequence))
        else:
            self.places[view][event_id] = received.stream, received.sequence

    def misplaced(self, promised: dict[str, dict[str, tuple[str, int]]]) -> int:
        """Copies that do not lie where a receipt said."""
        return sum(
            place != self.places.get(view, {}).get(one) and place not in self.again.get(one, ())
            for view, places in promised.items()
            for one, place in places.items()
        )


async def quiet(world: World, quiet_s: float) -> tuple[float, list[str]]:
    """Wait until all that was accepted is stored, delivered and acked, or nothing moves for *quiet_s*.

    Returns:
        Seconds that it took, and the durables that are not done, as the server shows them.
    """
    wanted = len(VIEWS) * sum(_lines(world.notes(f"{source.source[1:]}.accepted")) for source in SOURCES)
    began = changed = anyio.current_time()
    stored, durables = 0, list[dict[str, Any]]()
    moves: tuple[Any, ...] = ()
    async with operator_session(str(world.led.root)) as session:
        while anyio.current_time() < began + SETTLE_S:
            await anyio.sleep(POLL_S)
            with suppress(MeshError):
                stored, durables = await _state(session, world.size.readers)
                now = (stored, *(_moves(info) for info in durables))
                if now != moves:
                    moves, changed = now, anyio.current_time()
                    continue
            settled = stored >= wanted and not any(map(_left, durables))
            if settled or anyio.current_time() > changed + quiet_s:
                break
    return anyio.current_time() - began, [_shown(info) for info in durables if _left(info)]


async def _state(session: Session, readers: tuple[Reader, ...]) -> tuple[int, list[dict[str, Any]]]:
    """Copies stored, and the durables of the readers."""
    infos = [await stream_info(session.connection, stream) for stream in STREAMS]
    durables = [
        info for stream in STREAMS for info in await _pages(session.connection, f"CONSUMER.LIST.{stream}", "consumers")
    ]
    names = tuple(f"{reader.team}--{reader.name}" for reader in readers)
    stored = sum(info["state"]["messages"] for info in infos)
    return stored, [info for info in durables if info["name"].startswith(names)]


def _left(info: dict[str, Any]) -> int:
    """Events of a durable that nobody has acked."""
    return int(info["num_pending"] + info["num_ack_pending"])


def _moves(info: dict[str, Any]) -> tuple[int, ...]:
    return info["delivered"]["consumer_seq"], info["ack_floor"]["consumer_seq"], _left(info)


def _shown(info: dict[str, Any]) -> str:
    counts = ("num_pending", "num_ack_pending", "num_redelivered", "num_waiting", "delivered", "ack_floor")
    facts = {name: info.get(name) for name in (*counts, "priority_groups", "cluster")}
    return f"{info['stream_name']} {info['name']}: {facts}"


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


async def verdict(world: World) -> dict[str, Any]:
    """The counts of a mesh whose load has stopped and which is `quiet`, and lines for people under `astray`."""
    accepted, stored = Accepted(), Stored()
    accepted.read(world.root.glob("notes/*.accepted"))
    async with operator_session(str(world.led.root)) as session:
        await stored.read(session)
        letters = await _letters(session)
    ids = accepted.durable.keys()
    missing = {view: {one for one in ids if one not in stored.places.get(view, {})} for view in VIEWS}
    counts = Counter({"not_stored": sum(map(len, missing.values())), **dict.fromkeys(OF_READERS, 0)})
    lost = set().union(*missing.values())
    for reader in world.size.readers:
        lost |= _reader(world, reader, accepted, stored, letters, counts)
    answers = _answers(world)
    return {
        "accepted": len(ids),
        "spooled": sum(durable == "spool" for durable in accepted.durable.values()),
        "stored": stored.copies,
        "stored_twice": sum(map(len, stored.again.values())),
        "misplaced": stored.misplaced(accepted.places),
        "unsigned": stored.unsigned,
        "unmasked": stored.unmasked,
        "in_clear_on_disk": in_clear_on_disk(world),
        "reordered_in_stream": sum(reordered_in_stream(places) for places in stored.places.values()),
        "lost": len(lost),
        **counts,
        "unexpected_answers": sum(
            count for name, count in answers.items() if name.split()[0] not in {*EXPECTED, "unanswered"}
        ),
        "answers": answers,
        "ended_by_themselves": {child.name: child.ended for child in world.children if child.ended},
        "overstayed": sum(child.overstayed for child in world.children),
        "astray": [
            line
            for view, places in stored.places.items()
            for line in astray(view, places, stored.facts, accepted.durable, world.timeline)
        ],
        "adapters_ended": sum(not world.notes(f"{source.source[1:]}.answers").exists() for source in SOURCES),
    }


def _reader(  # noqa: PLR0917 - each of another type
    world: World,
    reader: Reader,
    accepted: Accepted,
    stored: Stored,
    letters: Counter[tuple[str, str]],
    counts: Counter[str],
) -> set[str]:
    """Count what became of the events of one subscription; returns the ids that it lacks."""
    handled = Handled()
    handled.read(world.root.glob(f"notes/{reader.name}-*.handled"))
    there = effects(world.notes(f"{reader.name}.db"))
    ids = accepted.durable.keys()
    undelivered = {one for one in ids if one not in handled.settled}
    unaffected = {one for one in ids if not there[one] and not is_poison(one)}
    unburied = {one for one in ids if is_poison(one) and not letters[reader.name, one]}
    buried = {one for name, one in letters if name == reader.name}
    counts["delivered"] += len(handled.settled)
    counts["duplicates_seen"] += handled.repeated()
    counts["effects"] += len(there)
    counts["effects_twice"] += sum(there.values()) - len(there)
    counts["not_delivered"] += len(undelivered)
    counts["without_effect"] += len(unaffected)
    counts["dead_letters"] += len(buried)
    counts["not_buried"] += len(unburied)
    counts["buried_twice"] += sum(n - 1 for (name, _), n in letters.items() if name == reader.name)
    counts["buried_without_reason"] += sum(not is_poison(one) for one in buried)
    counts["reordered_per_key"] += handled.reordered(stored.places.get(reader.view, {})) if reader.ordered else 0
    return undelivered | unaffected | unburied


async def _letters(session: Session) -> Counter[tuple[str, str]]:
    """Dead letters by subscription and event."""
    state = (await stream_info(session.connection, "DLQ"))["state"]
    found: Counter[tuple[str, str]] = Counter()
    for sequence in range(state["first_seq"], state["last_seq"] + 1):
        try:
            message = (await api(session.connection, "STREAM.MSG.GET.DLQ", {"seq": sequence}))["message"]
        except MeshError:
            continue  # deleted
        letter = msgspec.json.decode(b64decode(message["data"]))
        found[letter["subscription"], (letter.get("event") or {}).get("id", "")] += 1
    return found


def in_clear_on_disk(world: World) -> int:
    """Files in the agents' directories that hold an address in clear."""
    files = [file for source in SOURCES for file in world.data.agent(source.agent).rglob("*") if file.is_file()]
    return sum(CLEAR.encode() in file.read_bytes() for file in files)


def _answers(world: World) -> dict[str, int]:
    """What the adapters were told, and how often."""
    found: Counter[str] = Counter()
    for file in world.root.glob("notes/*.answers"):
        found.update(msgspec.json.decode(file.read_bytes(), type=dict[str, int]))
    return dict(found)
