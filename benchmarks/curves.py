"""Does cost stay flat? `make curves`: one thing grows, and publishing and consuming are measured beside nats-py.

What grows: events already stored, subscriptions, views that an event is copied to, the size of events, documents of the
policies, agents, consumers of one durable. Each curve is a picture in `benchmarks/curves/` and its numbers as JSON
beside it. A point is what we do for each event in relation to what nats-py does bare, in the same mesh, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from benchmarks import plots
from benchmarks.curve_consumers import shared
from benchmarks.curve_points import COUNT, VOLUME_BYTES, Point, at, ballast, measure
from benchmarks.curve_sets import view_names, with_agents, with_views
from benchmarks.machine import surroundings
from benchmarks.policy_sets import files
from benchmarks.validity import why_invalid

Points = AsyncIterator[tuple[float, Point]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One thing that grows.

    Args:
        title: Above the picture.
        label: What x is.
        xs: Where it is measured; a quick run takes the first two.
        points: Measures there, one after the other.
    """

    title: str
    label: str
    xs: Sequence[float]
    points: Callable[[Sequence[float], bool], Points]


async def _stored(xs: Sequence[float], quick: bool) -> Points:
    """One mesh, filled up between the points; what it is filled with are other types, as a domain has many."""
    async with at() as setting:
        held = 0
        for x in xs:
            await ballast(setting, int(x) - held)
            held = int(x)
            yield x, await measure(setting, quick=quick)
            setting.rates.clear()


def _each(make: Callable[[int], Mapping[str, Any]]) -> Callable[[Sequence[float], bool], Points]:
    """A mesh for each point: *make* says what `at` is given."""

    async def points(xs: Sequence[float], quick: bool) -> Points:
        for x in xs:
            options = dict(make(round(x)))
            count = options.pop("count", COUNT)
            more = options.pop("more", ())
            async with at(*more, **options) as setting:
                yield x, await measure(setting, quick=quick, count=count)

    return points


def _payload(size: int) -> Mapping[str, Any]:
    """Fewer of the large ones: so many bytes in a round."""
    return {"size": size, "count": min(COUNT, VOLUME_BYTES // size)}


CURVES = {
    "stored": Curve("Events already stored", "events in the stream", (1e3, 1e4, 1e5, 1e6), _stored),
    "subscriptions": Curve(
        "Subscriptions of every event",
        "durables beside the one that is consumed",
        (1, 10, 50, 200),
        _each(lambda n: {"more": [f"more-{number}" for number in range(n)]}),
    ),
    "views": Curve(
        "Views of each event",
        "masked, signed copies of each event",
        (1, 2, 4, 8),
        _each(lambda n: {"policies": with_views(n), "views": view_names(n), "count": COUNT // n}),
    ),
    "payload": Curve("Size of events", "bytes of data", (205, 1024, 4096, 16384, 65536), _each(_payload)),
    "policies": Curve(
        "Documents of the policies",
        "documents in force",
        (5, 10, 100, 1000),
        _each(lambda n: {"policies": files(n)}),
    ),
    "agents": Curve(
        "Agents that publish",
        "agents with connections and keys of their own",
        (1, 10, 50, 200),
        _each(lambda n: {"policies": with_agents(n), "agents": n}),
    ),
    "consumers": Curve("Consumers of one durable", "processes", (1, 2, 3, 4), shared),
}
LINES = {"publish_ratio": "publish: ours / publish_async", "consume_ratio": "consume: ours / fetch(100)"}


async def draw(name: str, *, quick: bool) -> dict[str, Any]:
    """Measure one curve; its picture and numbers are written unless it was only tried."""
    curve = CURVES[name]
    found: list[tuple[float, Point]] = []
    async for x, point in curve.points(curve.xs[:2] if quick else curve.xs, quick):
        found.append((x, point))
        ratios = "  ".join(f"{line} {point[line].median:.2f}" for line in LINES if line in point)
        print(f"{name} {x:,.0f}: {ratios}", file=sys.stderr, flush=True)
    document = {
        "title": curve.title,
        "x": curve.label,
        "points": [{"x": x, **{key: asdict(spread) for key, spread in point.items()}} for x, point in found],
    }
    if not quick:
        _picture(name, curve, found)
        text = json.dumps({**surroundings(), **document}, indent=1)
        plots.file_of(name).with_suffix(".json").write_text(text + "\n")
    return document


def _picture(name: str, curve: Curve, found: Sequence[tuple[float, Point]]) -> None:
    xs = [x for x, _ in found]
    lines = [(what, xs, [p[line].median for _, p in found]) for line, what in LINES.items() if line in found[0][1]]
    scale = "linear" if max(xs) < 10 else "log"
    axes: dict[str, Any] = {"xscale": scale, "xlabel": curve.label, "ylabel": "times as fast", "ylim": (0, None)}
    axes |= {"xticks": xs, "xticklabels": [f"{x:,.0f}" for x in xs]}
    plots.save(name, curve.title, axes, lines)


def main(given: Sequence[str] | None = None) -> int:
    """Measure all, or one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="What grows, and what it costs.")
    parser.add_argument("--only", choices=CURVES, help="one curve")
    parser.add_argument("--quick", action="store_true", help="two points of each; nothing is written")
    parser.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args(given)
    documents = {}
    names = [arguments.only] if arguments.only else list(CURVES)
    for name in names:
        began_s = time.monotonic()
        try:
            documents[name] = anyio.run(_run, name, arguments.quick, backend_options={"use_uvloop": True})
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - said below; the others can be drawn all the same
            if (why := why_invalid(error)) is None:
                traceback.print_exception(error)
                why = type(error).__name__
            print(f"no curve, the run is not valid: {name}: {why}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(documents, indent=2))
    return 0 if len(documents) == len(names) else 2


async def _run(name: str, quick: bool) -> dict[str, Any]:
    return await draw(name, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
