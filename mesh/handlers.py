"""Which handler an event goes to: by class or by pattern, the narrowest that takes its type.

```python
handlers = mesh.Handlers()

@handlers.on(ContactUpdated)
async def updated(data: ContactUpdated) -> None: ...

@handlers.on("crm.contact.>")
def others(event: mesh.Admitted) -> None: ...   # a plain function runs in a thread

await subscription.run(handlers)
```
Of two patterns that take the same type one has to be within the other, so that the order of registration never decides.

An event that none takes is a dead letter, `no-handler`: acking it would lose it for this team without anybody noticing,
and a handler that was forgotten is put right by `mesh dlq redrive`. `Handlers(otherwise="ack")` acks and counts it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio.to_thread

from mesh.delivery import Reject
from mesh.errors import ConfigError
from mesh.subjects import Pattern, versioned
from mesh.telemetry import counter
from mesh.typed import declared, wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.inbound import Admitted

    Handler = Callable[[Any], object] | Callable[[Any, Any], object]

H = TypeVar("H", bound="Handler")

NO_HANDLER = "no-handler"
MAX_TYPES = 4096  # whose handler is remembered; full means emptied, then filled again

UNHANDLED = counter(
    "mesh.inbound.unhandled", unit="{event}", watch="rising: no handler takes what a subscription reads"
)


def caller(handler: Handler, *, known: tuple[type, ...] = ()) -> Callable[[Admitted], Awaitable[object]]:
    """What calls *handler* with what it asks for: on the loop where it is async, else in a thread.

    Args:
        handler: Asks for the event, its data, or both; see `mesh.typed`.
        known: Classes that its annotations may name, wherever they are defined.

    Raises:
        ConfigError: It has parameters that nobody can fill.
    """
    take = wanted(handler, known=known).take
    if _is_async(handler):

        async def call(event: Admitted) -> object:
            return await handler(*take(event))  # type: ignore[misc]
    else:

        async def call(event: Admitted) -> object:
            own = anyio.CapacityLimiter(1)  # how many run at once is `concurrency`, not anyio's 40 threads
            result = await anyio.to_thread.run_sync(handler, *take(event), limiter=own)
            return await result if inspect.isawaitable(result) else result

    return call


def _is_async(handler: object) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


class Handlers:
    """Handlers by what they take; itself one that `Subscription.run` takes, and that a test can call with an event.

    Args:
        otherwise: What becomes of an event that none of them takes.
    """

    def __init__(self, *, otherwise: Literal["dead-letter", "ack"] = "dead-letter") -> None:
        self._otherwise = otherwise
        self._routes: dict[Pattern, Callable[[Admitted], Awaitable[object]]] = {}
        self._found: dict[str, Callable[[Admitted], Awaitable[object]] | None] = {}

    def on(self, *takes: str | type) -> Callable[[H], H]:
        """Register the function below for each of *takes*: a pattern, or a class with `@mesh.event_type`.

        Raises:
            BadPattern: A pattern is outside the grammar.
            ConfigError: A class is not declared; the handler asks for what these events have not; or another handler's
                pattern takes some of the same types, and neither is within the other.
        """
        patterns = [_pattern(one) for one in takes]
        if not patterns:
            raise ConfigError(
                "a handler is registered for nothing", expected='on("crm.contact.>") or on(ContactUpdated)'
            )

        def register(handler: H) -> H:
            known = tuple(one for one in takes if isinstance(one, type))
            call = caller(handler, known=known)
            for shape in wanted(handler, known=known).shapes:
                _check(shape, patterns)
            for pattern in patterns:
                self._add(pattern, call)
            return handler

        return register

    async def __call__(self, event: Admitted) -> None:
        """Hand *event* to its handler.

        Raises:
            Reject: No handler takes it, or its data does not fit.
        """
        call = self._route(event.type)
        if call is not None:
            await call(event)
            return
        UNHANDLED.add(1)
        if self._otherwise == "dead-letter":
            raise Reject(NO_HANDLER)

    def takes(self, type: str) -> bool:
        """Whether one of them takes events of *type*."""
        return self._route(type) is not None

    def _add(self, pattern: Pattern, call: Callable[[Admitted], Awaitable[object]]) -> None:
        for other in self._routes:
            if pattern == other or (pattern.intersects(other) and not (pattern.covers(other) or other.covers(pattern))):
                raise ConfigError(
                    f"two handlers take the same events: {pattern} and {other}",
                    expected="patterns that are apart, or one within the other",
                    got=str(pattern.intersection(other)),
                    next="register one handler for what both take, by that pattern",
                )
        self._routes[pattern] = call
        self._found.clear()

    def _route(self, type_: str) -> Callable[[Admitted], Awaitable[object]] | None:
        try:
            return self._found[type_]
        except KeyError:
            pass
        taking = [pattern for pattern in self._routes if pattern.matches(type_)]
        narrowest = next((p for p in taking if all(other.covers(p) for other in taking)), None)
        if len(self._found) >= MAX_TYPES:
            self._found.clear()
        found = self._found[type_] = None if narrowest is None else self._routes[narrowest]
        return found


def _pattern(takes: str | type) -> Pattern:
    if isinstance(takes, str):
        return Pattern.parse(takes)
    type_ = declared(takes)
    if type_ is None:
        raise ConfigError(
            f"{takes.__qualname__} is the data of no event type",
            expected="a class declared with @mesh.event_type(...)",
            next="declare it, or register by a pattern",
        )
    return Pattern.from_text(versioned(type_))


def _check(shape: Any, patterns: list[Pattern]) -> None:
    """Refuse a handler that wants events of one type and is registered for others."""
    type_ = declared(shape)
    if type_ is not None and any(pattern.text != versioned(type_) for pattern in patterns):
        raise ConfigError(
            f"a handler that wants {shape.__qualname__} is registered for other events",
            expected=type_,
            got=", ".join(map(str, patterns)),
            next="register it for its class; for a shape that several types share, leave out @mesh.event_type",
        )
