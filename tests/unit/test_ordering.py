"""Order per key: of each key one event at a time, the smallest that is outstanding; others go on."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mesh.ordering import RECALL, STUCK_S, Order, key_of
from mesh.signing import Received


def event(sequence: int, key: str = "a", deliveries: int = 1) -> Received:
    """An event of *key*."""
    body = msgspec.json.encode({"source": "/crm", "partitionkey": key})
    return Received("ev.x", body, (), None, "S", sequence, 0, deliveries, f"$JS.ACK.S.d.{deliveries}.{sequence}.1.1.0")


def order(*sequences: int, room: int = 100, key: str = "a") -> Order:
    """One with events of *key* in it."""
    made = Order(room)
    for sequence in sequences:
        assert made.arrived(event(sequence, key))
    return made


def taken(of: Order, now: float = 0.0) -> list[int]:
    """The sequences that may be handed out."""
    return [received.sequence for received in of.take(now)]


def test_the_smallest_of_a_key_goes_first_and_the_next_when_it_is_settled() -> None:
    """Whatever order they came in."""
    of = order(3, 1, 2)
    assert [taken(of), taken(of)] == [[1], []]
    of.settled(1)
    assert taken(of) == [2]
    of.settled(2)
    of.settled(3)  # settled before its turn: an older copy of it was handled
    assert (taken(of), len(of), of.held, of.handed) == ([], 0, 0, 0)


def test_other_keys_go_on() -> None:
    """Events without a key have one of their own each."""
    of = order(1, 2)
    assert of.arrived(event(3, "b"))
    assert of.arrived(event(4, ""))
    assert of.arrived(event(5, ""))
    assert taken(of) == [1, 3, 4, 5]


def test_a_failed_event_is_tried_again_before_the_next_of_its_key() -> None:
    """Once it is due, and not before."""
    of = order(1, 2)
    (first,) = of.take(0.0)
    again = msgspec.structs.replace(first, deliveries=2)
    of.again(again, due=5.0)
    assert taken(of, 4.9) == []
    assert of.take(5.0) == [again]
    assert of.in_hand(again)
    assert not of.in_hand(first)
    of.settled(1)
    assert taken(of, 5.0) == [2]


def test_what_is_here_is_not_taken_twice() -> None:
    """Waiting or in a handler: the copy that came again is refused."""
    of = order(1, 2)
    taken(of)
    assert not of.arrived(event(1, deliveries=2))
    assert not of.arrived(event(2, deliveries=2))
    assert len(of) == 2


def test_a_stuck_key_keeps_numbers_and_asks_bodies_back_when_it_moves() -> None:
    """At most as many bodies wait as there is room for, the nearest; what was laid aside comes back in time."""
    of = order(*range(1, 41), room=10)
    assert taken(of, 0.0) == [1]
    assert of.surplus(STUCK_S / 2) == []  # it still moves
    aside = of.surplus(STUCK_S * 2)
    assert sorted(entry.sequence for entry in aside) == list(range(12, 41))
    assert of.held == 10
    for sequence in range(1, 10):
        of.settled(sequence)
        assert taken(of, 3.0) == [sequence + 1]
    assert of.recall(0.0) == []
    of.settled(10)
    recalled = [entry.sequence for entry in of.recall(0.0)]
    assert recalled == list(range(12, 11 + RECALL))
    for sequence in reversed(recalled):
        assert of.arrived(event(sequence, deliveries=2))
    assert taken(of, 3.0) == [11]
    of.settled(11)
    assert taken(of, 3.0) == [12]


def test_one_that_waits_for_its_next_try_gives_its_room_away_too() -> None:
    """Many stuck keys with one event each would fill it else."""
    of = Order(room=2)
    for sequence in range(1, 6):
        assert of.arrived(event(sequence, f"k{sequence}"))
    for received in of.take(0.0):
        of.again(received, due=60.0)
    assert len(of.surplus(1.0)) == 3
    assert taken(of, 60.0) == [1, 2] or of.held == 0
    for entry in of.recall(0.0):
        assert of.arrived(event(entry.sequence, entry.key[1], deliveries=2))
    assert len(of.take(60.0)) + 2 == 5


def test_bodies_behind_a_head_that_is_away_leave_it_room_to_come() -> None:
    """Else they could hold all of it, and what they wait for would never come: no key would ever move again."""
    of = order(1, room=2)
    assert [entry.sequence for entry in of.lay_all_aside()] == [1]
    for sequence in (2, 3, 4, 5):
        assert of.arrived(event(sequence))
    assert (taken(of), [entry.sequence for entry in of.recall(0.0)], of.away) == ([], [1], 1)
    assert [entry.sequence for entry in of.surplus(0.0)] == [5, 4]
    assert of.held == 2
    assert of.arrived(event(1, deliveries=2))
    assert (taken(of), of.away) == ([1], 0)


def test_a_head_that_somebody_else_settled_is_waited_for_no_longer() -> None:
    """Asked back, it never comes; what was asked later, or is here, stays."""
    of = order(1, 2, room=1)
    of.lay_all_aside()
    assert of.arrived(event(3, "b"))
    assert (taken(of), [entry.sequence for entry in of.recall(5.0)]) == ([3], [1])
    assert (of.drop_asked_before(5.0), len(of)) == (0, 3)
    assert (of.drop_asked_before(5.1), len(of), of.away) == (1, 2, 1)
    assert [entry.sequence for entry in of.recall(9.0)] == [2]
    assert of.arrived(event(2, deliveries=2))
    assert taken(of) == [2]


def test_one_that_comes_late_is_counted() -> None:
    """It should not: then something is wrong with how slots change hands."""
    of = order(2)
    taken(of)
    assert of.arrived(event(1))
    assert of.late == 1
    assert taken(of) == []  # one of its key is in a handler
    of.settled(2)
    assert taken(of) == [1]


def test_a_body_that_is_no_event_has_a_key_of_its_own() -> None:
    """It is refused when it is verified."""
    for body in (b"", b"[]", b'{"source": 1}', b"\xff", b'{"partitionkey": {}}'):
        assert key_of(msgspec.structs.replace(event(7), body=body)) == ("", "7")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "fail"])), max_size=60), st.randoms())
def test_any_run_hands_each_key_out_in_order(plan: list[tuple[str, str]], chance: object) -> None:
    """Arrivals in any order before the start, failures, room for two: every key's first handlings are in order."""
    of = Order(room=2)
    waiting = [event(number + 1, key) for number, (key, _) in enumerate(plan)]
    chance.shuffle(waiting)  # type: ignore[attr-defined]  # hypothesis hands in a Random
    away = {received.sequence: received for received in waiting}
    for received in waiting:
        assert of.arrived(received)
    now, failed, seen = 0.0, set[int](), dict[str, list[int]]()
    while len(of):
        now += 1.0
        for received in of.take(now):
            key = plan[received.sequence - 1][0]
            if plan[received.sequence - 1][1] == "fail" and received.sequence not in failed:
                failed.add(received.sequence)
                of.again(received, now + 3.0)
                continue
            seen.setdefault(key, []).append(received.sequence)
            of.settled(received.sequence)
        of.surplus(now)
        for entry in of.recall(0.0):
            assert of.arrived(msgspec.structs.replace(away[entry.sequence], deliveries=2))
    assert all(sequences == sorted(sequences) for sequences in seen.values())
    assert sum(map(len, seen.values())) == len(plan)
