"""From one revision's rights to the next: what is taken away at once, what stays until it is drained. All as data.

A copy stays in the view that its reader had when it was made. So when a subscription's view changes, the filter of the
old view stays on its durable until what was stored under it is acked: a change of view skips no event. And a publisher
that still runs the old revision makes copies in old views for a moment: it keeps those subjects until it has said that
it runs the new one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from mesh.jetstream.topology import ConsumerSpec
from mesh.policy.grants import PublishGrant, outermost
from mesh.subjects import Pattern, physical_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.jetstream.topology import Config

_FILTER_TOKENS = 4  # ev.<site>.<view>.<slot>, then the type
_Place = tuple[str, str, str]  # site, view, slot; the last is `*` for all


# --- filters of durables ---------------------------------------------------------------------------------------------


def filters_of(config: Config) -> tuple[str, ...]:
    """The filters of a consumer as the server states it; none means every subject of the stream."""
    several = config.get("filter_subjects")
    single = config.get("filter_subject")
    return tuple(several) if several else (single,) if single else ()


def remaining(held: Iterable[str], exact: Iterable[str]) -> tuple[str, ...]:
    """The filters of a durable while it changes: *exact*, and what `still_read` leaves of those it *held*.

    Args:
        held: As the server has them.
        exact: What the grants of now ask for.

    Returns:
        Sorted, none inside another: the server refuses that.
    """
    exact = tuple(exact)
    return _joined(_by_place((*exact, *still_read(held, exact))))


def still_read(held: Iterable[str], exact: Iterable[str]) -> tuple[str, ...]:
    """The parts of the filters *held* whose types are read now, in whatever view: a copy stays in the view it is in.

    Args:
        held: As the server has them.
        exact: What the grants of now ask for.

    Returns:
        As `remaining`; empty where nothing of it is read any more.
    """
    wanted = [parsed[1] for text in exact if (parsed := _parse(text)) is not None]
    found: dict[_Place, list[Pattern]] = {}
    for place, patterns in _by_place(held).items():
        parts = [both for p in patterns for now in wanted if (both := p.intersection(now)) is not None]
        found[place] = parts
    return _joined(found)


def widened(held: Iterable[str], exact: Iterable[str]) -> tuple[str, ...]:
    """The filters of a durable while a change may still fail: all it *held*, and all of *exact*.

    A durable moves past what its filters leave out, and does not come back for it. So nothing is taken away before it
    is certain that it stays away.

    Returns:
        As `remaining`; filters that are none of ours are not kept.
    """
    return _joined(_by_place((*held, *exact)))


def in_slot(filters: Iterable[str], slot: str) -> tuple[str, ...]:
    """*filters* as a durable of *slot* has them, or with `*` one of all slots: what an ordered subscription takes over.

    Returns:
        As `remaining`.
    """
    found: dict[_Place, list[Pattern]] = {}
    for (site, view, _), patterns in _by_place(filters).items():
        found.setdefault((site, view, slot), []).extend(patterns)
    return _joined(found)


def takes_away(held: Iterable[str], then: Iterable[str]) -> bool:
    """Whether a durable that goes from the filters *held* to *then* loses something it could be delivered."""
    then = tuple(then)
    kept = [parsed for text in then if (parsed := _parse(text)) is not None]
    for text in held:
        if text in then:
            continue
        parsed = _parse(text)
        if parsed is None:
            return True
        (site, view, slot), pattern = parsed
        places = ((site, view, slot), (site, view, "*"))
        if not any(place in places and wide.covers(pattern) for place, wide in kept):
            return True
    return False


def with_filters(spec: ConsumerSpec, filters: tuple[str, ...]) -> ConsumerSpec:
    """*spec* with other filters."""
    return replace(spec, filters=filters)


def _by_place(filters: Iterable[str]) -> dict[_Place, list[Pattern]]:
    found: dict[_Place, list[Pattern]] = {}
    for text in filters:
        parsed = _parse(text)
        if parsed is not None:
            found.setdefault(parsed[0], []).append(parsed[1])
    return found


def _joined(found: Mapping[_Place, list[Pattern]]) -> tuple[str, ...]:
    return tuple(
        physical_pattern(site, view, pattern, slot)
        for (site, view, slot), patterns in sorted(found.items())
        for pattern in outermost(patterns)
    )


def _parse(text: str) -> tuple[_Place, Pattern] | None:
    """Where one of our filters is, and of which types; None for anything else."""
    tokens = text.split(".", _FILTER_TOKENS)
    if len(tokens) <= _FILTER_TOKENS or tokens[0] != "ev":
        return None
    return (tokens[1], tokens[2], tokens[3]), Pattern.from_text(tokens[4])


# --- subjects of publishers ------------------------------------------------------------------------------------------


def still_allowed(
    held: Iterable[PublishGrant], types: Iterable[Pattern], denied: Iterable[Pattern]
) -> tuple[PublishGrant, ...]:
    """What an agent keeps of the subjects it *held*: the types it may still publish, in whatever view.

    Args:
        held: What its account imports.
        types: What its publish lines, and the routes of its events, name now.
        denied: What is refused to it without a condition.
    """
    return _still_allowed(tuple(held), tuple(types), tuple(denied))


@lru_cache(64)  # of a large tenant's agents many have the same rights
def _still_allowed(
    held: tuple[PublishGrant, ...], types: tuple[Pattern, ...], denied: tuple[Pattern, ...]
) -> tuple[PublishGrant, ...]:
    parts = (
        PublishGrant(grant.view, both)
        for grant in held
        for pattern in types
        if (both := grant.pattern.intersection(pattern)) is not None
    )
    return tuple(dict.fromkeys(part for part in parts if not any(deny.covers(part.pattern) for deny in denied)))


def together(
    some: Mapping[str, Iterable[PublishGrant]], more: Mapping[str, Iterable[PublishGrant]]
) -> dict[str, tuple[PublishGrant, ...]]:
    """The subjects of both, by agent."""
    return {agent: (*some.get(agent, ()), *more.get(agent, ())) for agent in {**some, **more}}
