"""The slots of one ordered subscription, shared out among its replicas: a durable each, pulled by one at a time.

`members` says who is there, and everybody reckons alike from that who should have which slot. One that has a slot too
many stops handing out, lets its handlers finish, hands the rest back and says how it left; then whoever should have it
pulls. A slot of one that died is pulled by the next as soon as it counts as gone; when the server gives it away, and
when events may be handed out then, is in `slot`.
"""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.errors import Unavailable
from mesh.members import Members
from mesh.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from anyio.abc import TaskGroup

    from mesh.jetstream.connection import Connection
    from mesh.signing import Received

TICK_S = 0.1
PATIENCE_S = 3.0  # for handlers of a slot that is to be given up; one that takes longer keeps its slot here
STAY_S = 30.0  # until it is tried again
FLUSH_S = 2.0
LEAST_IN_FLIGHT = 32  # events of one slot: many slots share `max_in_flight`, and one should still fill a round trip

Place = tuple[str, str]  # stream and durable

log = logs.get("slots")


def share_out(members: Sequence[str], places: Iterable[Place]) -> dict[Place, str]:
    """Who should have which place: evenly, alike for everybody, and with few moves where a member comes or goes.

    Each place goes to the member that ranks highest for it among those with room left (rendezvous hashing with a bound:
    no two members differ by more than one).
    """
    places = sorted(places)
    least, more = divmod(len(places), len(members))
    load = dict.fromkeys(members, 0)
    shares: dict[Place, str] = {}
    for place in places:
        full = least + (sum(count > least for count in load.values()) < more)
        free = [member for member in members if load[member] < full]
        shares[place] = best = max(free, key=lambda member: _rank(member, place))
        load[best] += 1
    return shares


def _rank(member: str, place: Place) -> bytes:
    return blake2b(f"{member} {place[0]} {place[1]}".encode(), digest_size=8).digest()


class Slots:
    """Pulls the slots that are ours; to the feed what `Pullers` is.

    Args:
        connection: The team's.
        subscription: As `<team>--<name>`.
        offer: Gets each event whose turn it is, and its slot.
        mark: Makes of an event as it came what is offered; None where it is to be acked unseen.
        withdraw: Called when a slot is given up: what it offered and nobody took yet is taken back.
        ack_wait_s: Of the durables.
        max_in_flight: Events of all slots together, where they are many enough: see `LEAST_IN_FLIGHT`.
    """

    def __init__(
        self,
        connection: Connection,
        subscription: str,
        *,
        offer: Callable[[Received, Slot], None],
        mark: Callable[[Received, Slot], Received | None],
        withdraw: Callable[[Slot], None],
        ack_wait_s: float,
        max_in_flight: int,
    ) -> None:
        self._connection = connection
        self._offer = offer
        self._mark = mark
        self._withdraw = withdraw
        self._ack_wait_s = ack_wait_s
        self._max_in_flight = max_in_flight
        self._members = Members(connection, subscription, self._look_again)
        self._places: list[Place] = []
        self._beside: list[Place] = []
        self._slots: dict[Place, Slot] = {}
        self._gives_up_at: dict[Place, float] = {}  # slots that we would leave, and until when their handlers may take
        self._stays: dict[Place, float] = {}  # slots whose handlers took longer, and when to try again
        self._moved = True  # somebody came or went, or places changed
        self._stopped = False
        self._tasks: TaskGroup | None = None

    @property
    def in_flight(self) -> int:
        """Events delivered to us and neither settled nor laid aside."""
        return sum(slot.in_flight for slot in self._slots.values())

    def all(self) -> tuple[Slot, ...]:
        """The slots that we have or pull for."""
        return tuple(self._slots.values())

    def start(self, tasks: TaskGroup) -> None:
        """Look for the other replicas and pull what is ours, as tasks of this group."""
        self._tasks = tasks
        tasks.start_soon(self._members.run)
        tasks.start_soon(self._run)

    def follow(self, places: Iterable[Place]) -> tuple[list[str], list[str]]:
        """Share out exactly these places; returns the streams that are new, and those that were left."""
        before, self._places = self._places, [] if self._stopped else list(places)
        self._moved = True
        streams = [dict.fromkeys(stream for stream, _ in some) for some in (self._places, before)]
        new, left = ([stream for stream in some if stream not in other] for some, other in (streams, streams[::-1]))
        return new, left

    def follow_beside(self, places: Iterable[Place]) -> None:
        """Share out these too, on their own: not every replica has heard of them at the same moment."""
        self._beside = [] if self._stopped else list(places)
        self._moved = True

    def pace(self, ack_wait_s: float) -> None:
        """The durables wait so many seconds from now on."""
        self._ack_wait_s = ack_wait_s
        for slot in self._slots.values():
            slot.pace(ack_wait_s)

    @property
    def silent_s(self) -> float:
        """The longest that the server has not answered a pull."""
        return max((slot.silent_s for slot in self._slots.values()), default=0.0)

    async def stop(self) -> None:
        """Hand out and pull nothing more; what came can still be settled."""
        self._stopped = True
        async with anyio.create_task_group() as group:
            for slot in self._slots.values():
                group.start_soon(slot.stop)

    async def flush(self) -> None:
        """After `stop`: hand back what is not settled, and tell the others; waits for the server, not for long."""
        async with anyio.create_task_group() as group:
            for slot in tuple(self._slots.values()):
                group.start_soon(self._let_go, slot)
        self._members.say(bye=True)
        try:
            await self._connection.flush(FLUSH_S)
        except Unavailable as error:  # the server delivers again after ack_wait
            log.warning("slots_not_flushed", code=error.code)

    # --- whose slot --------------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        self._moved = True

    async def _run(self) -> None:
        while not self._stopped:
            now = time.monotonic()
            for slot in self._slots.values():
                slot.tick(now)
            self._see_leaving(now)
            if self._moved and self._members.certain:
                self._move()
            await anyio.sleep(TICK_S)

    def _move(self) -> None:
        """Begin with what should be ours and nobody else has, give up what should not."""
        self._moved = False
        alive = self._members.alive()
        shares = share_out(alive, self._places) | share_out(alive, self._beside)
        ours = [place for place, member in shares.items() if member == self._members.id]
        now = time.monotonic()
        for place, slot in self._slots.items():
            if place not in ours and not slot.leaving and now >= self._stays.get(place, 0.0):
                slot.leaving = slot.resting = True
                self._gives_up_at[place] = now + PATIENCE_S
                self._withdraw(slot)
        in_flight = max(min(LEAST_IN_FLIGHT, self._max_in_flight), self._max_in_flight // max(1, len(ours)))
        for place in ours:
            if place in self._slots or self._members.held_by_another(_name(place)):
                continue  # given up at this moment; `_look_again` is called when that is over
            self._begin(place, in_flight)

    def _begin(self, place: Place, max_in_flight: int) -> None:
        slot = Slot(
            self._connection,
            place,
            offer=self._offer,
            mark=self._mark,
            ack_wait_s=self._ack_wait_s,
            max_in_flight=max_in_flight,
            left=lambda: self._members.left.get(_name(place)),
        )
        self._slots[place] = slot
        self._members.holds.add(_name(place))
        self._members.say()
        if self._tasks is not None:
            self._tasks.start_soon(slot.run)

    def _see_leaving(self, now: float) -> None:
        """Let go of the slots whose handlers have finished; until then their pin is kept. Others are not left yet."""
        for place, until in tuple(self._gives_up_at.items()):
            slot = self._slots[place]
            if slot.idle or not slot.holds:
                del self._gives_up_at[place]
                if self._tasks is not None:
                    self._tasks.start_soon(self._leave, slot)
            elif now >= until:
                del self._gives_up_at[place]
                slot.leaving = False
                self._stays[place] = now + STAY_S
        for place, until in tuple(self._stays.items()):
            if now >= until:
                del self._stays[place]
                self._moved = True

    async def _leave(self, slot: Slot) -> None:
        await slot.stop()
        await self._let_go(slot)

    async def _let_go(self, slot: Slot) -> None:
        left = await slot.hand_back()
        self._slots.pop(slot.place, None)
        log.info("slot_left", stream=slot.place[0], durable=slot.place[1], in_order=left is not None)
        self._members.leave(_name(slot.place), left)
        self._moved = True


def _name(place: Place) -> str:
    return f"{place[0]} {place[1]}"
