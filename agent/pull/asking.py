"""What a request to the pull door may ask for. Pure.

Every number has its bounds, here or in the settings, and what is outside of them is refused rather than cut down.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from mesh.delivery import MAX_REASON_CHARS
from mesh.errors import InputError, NotJson, TooLarge
from mesh.retry import MAX_DELAY_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.settings import AgentSettings

NAME: Final = "pull"  # in metrics and logs
PREFIX: Final = "/v1/subscriptions/"
MAX_EVENTS: Final = 1000  # in one answer, and leases in one request
USUAL_EVENTS: Final = 100
USUAL_WAIT_S: Final = 10.0  # below what HTTP clients wait for an answer
MIN_LEASE_S: Final = 0.1
MAX_LEASE_CHARS: Final = 64
MAX_BODY_BYTES: Final = 128 * 1024  # 1,000 leases take 35 KiB
VERBS: Final = ("ack", "retry", "reject", "extend")

_whole = re.compile(r"[0-9]{1,9}").fullmatch
_number = re.compile(r"[0-9]{1,9}(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,3})?").fullmatch


class Fetch(NamedTuple):
    """How many events at most, how long to wait for the first, and how long each is leased (None: as is usual)."""

    most: int
    wait_s: float
    lease_s: float | None
    auto_ack: bool


class Settle(msgspec.Struct, frozen=True):
    """Which leases, and what else there is to say of them."""

    leases: list[str]
    delay_s: float | None = None
    reason: str = ""
    lease_s: float | None = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one lease; `expires_s` where it was extended."""

    lease: str
    ok: bool
    code: str | None = None
    expires_s: float | None = None


def fetch(query: Iterable[tuple[str, str]], settings: AgentSettings) -> Fetch:
    """The query of a fetch.

    Raises:
        InputError: A name that there is not, or twice; a value outside its bounds.
    """
    given: dict[str, str] = {}
    for name, value in query:
        if name not in ("max", "wait_s", "lease_s", "ack") or name in given:
            raise InputError(
                "the query has a name that this door does not know, or one twice",
                expected="max, wait_s, lease_s, ack, once each",
                got="one twice" if name in given else "another name",
                next="correct the URL",
            )
        given[name] = value
    if given.get("ack", "auto") != "auto":
        raise _outside("ack", "auto, or left out", "another text")
    longest_s = settings.max_pull_wait_s
    return Fetch(
        most=int(_digits("max", given, 1, MAX_EVENTS) or USUAL_EVENTS),
        wait_s=_seconds("wait_s", given, 0.0, longest_s, min(USUAL_WAIT_S, longest_s)) or 0.0,
        lease_s=_seconds("lease_s", given, MIN_LEASE_S, settings.max_lease_s, None),
        auto_ack="ack" in given,
    )


def settle(body: bytes, settings: AgentSettings) -> Settle:
    """The body of an ack, retry, reject or extend.

    Raises:
        NotJson: It is no JSON text.
        InputError: Another shape, or a value outside its bounds.
        TooLarge: More leases than one request may name.
    """
    try:
        asked = msgspec.json.decode(body, type=Settle)
    except msgspec.ValidationError as error:
        raise InputError(
            "the body is not of this door's shape",
            expected='{"leases": [text, ...]}, beside it delay_s, reason or lease_s',
            got=_place(error),
            next="see /openapi.json",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NotJson("the body is not JSON", expected='{"leases": [...]} in UTF-8', next="send JSON") from None
    if not asked.leases:
        raise _outside("leases", f"1 to {MAX_EVENTS}", "none")
    if len(asked.leases) > MAX_EVENTS:
        raise TooLarge(
            f"{len(asked.leases)} leases at once, limit {MAX_EVENTS}",
            expected=f"at most {MAX_EVENTS}",
            got=str(len(asked.leases)),
            next="send them in parts",
            limit=MAX_EVENTS,
            size=len(asked.leases),
        )
    if any(len(lease) > MAX_LEASE_CHARS for lease in asked.leases):
        raise _outside("leases", f"at most {MAX_LEASE_CHARS} characters each", "a longer one")
    if len(asked.reason) > MAX_REASON_CHARS:
        raise _outside("reason", f"at most {MAX_REASON_CHARS} characters", f"{len(asked.reason)}")
    _between("delay_s", asked.delay_s, 0.0, MAX_DELAY_S)
    _between("lease_s", asked.lease_s, MIN_LEASE_S, settings.max_lease_s)
    return asked


def _digits(name: str, given: dict[str, str], low: int, high: int) -> int | None:
    if name not in given:
        return None
    if not _whole(given[name]) or not low <= int(given[name]) <= high:
        raise _outside(name, f"a whole number, {low} to {high}", "another value")
    return int(given[name])


def _seconds(name: str, given: dict[str, str], low: float, high: float, usual: float | None) -> float | None:
    if name not in given:
        return usual
    if not _number(given[name]):
        raise _outside(name, f"seconds, {low:g} to {high:g}", "another value")
    return _between(name, float(given[name]), low, high)


def _between(name: str, value: float | None, low: float, high: float) -> float | None:
    if value is not None and not low <= value <= high:
        raise _outside(name, f"seconds, {low:g} to {high:g}", f"{value:g}")
    return value


def _outside(name: str, expected: str, got: str) -> InputError:
    return InputError(f"{name} is outside its bounds", expected=expected, got=got, next=f"correct {name}")


def _place(error: msgspec.ValidationError) -> str:
    """Where it is wrong: msgspec names a place and types, and quotes no value."""
    _, _, place = str(error).partition(" - at ")
    return f"another type, or none, at {place}" if place else "another shape"
