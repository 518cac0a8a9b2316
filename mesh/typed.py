"""Typed events: a class says what an event's data looks like, and handlers say by annotation what they want.

```python
@mesh.event_type("crm.contact.updated.v1")
class ContactUpdated(msgspec.Struct):
    contact: Contact
    country: str | None = None


await m.publish(ContactUpdated(contact, "DE"), source="/crm")


async def handle(data: ContactUpdated, event: mesh.Admitted) -> None: ...
```
The class is a msgspec Struct or a dataclass. Data is checked against it before it is published, and before a handler
gets it: what does not fit is a dead letter `data-mismatch` that says where, and never quotes a value.

A reader's class has to allow what its view does: a dropped field is missing, so it needs a default; a hidden value is
null, `[REDACTED]` or a pseudonym in its place. Members that the class does not name are ignored.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mesh.delivery import Reject
from mesh.errors import ConfigError, DataMismatch
from mesh.inbound import Admitted
from mesh.subjects import check_type, versioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ATTRIBUTE = "__mesh_event_type__"
_EVENT = "Admitted"  # how the annotation of a parameter that wants the whole event ends; never looked up
_PLACE = re.compile(r" - at (?:`key` in )?`([^`]*)`$")
# What msgspec says of types alone; everything else it says may quote a value, or be a class's own words.
_SAID = re.compile(r"Expected `[^`]+`, got `[^`]+`|Object missing required field `[^`]+`")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

T = TypeVar("T")
C = TypeVar("C", bound=type)


def event_type(type: str) -> Callable[[C], C]:
    """Say that the class below is the data of events of *type*. Stands above `@dataclass`.

    Args:
        type: The logical type, such as `crm.contact.updated.v1`.

    Raises:
        BadType: *type* is outside the grammar.
        ConfigError: The class is neither a msgspec Struct nor a dataclass.
    """
    check_type(type)

    def declare(shape: C) -> C:
        if not (issubclass(shape, msgspec.Struct) or dataclasses.is_dataclass(shape)):
            raise ConfigError(
                f"{shape.__qualname__} cannot be the data of {type}",
                expected="a msgspec.Struct, or a dataclass",
                got="another class",
                next="put @mesh.event_type above @dataclass",
            )
        setattr(shape, _ATTRIBUTE, type)
        return shape

    return declare


def declared(shape: object) -> str | None:
    """The type that `event_type` gave this very class; None for any other, those that inherit from it too."""
    found = vars(shape).get(_ATTRIBUTE) if isinstance(shape, type) else None
    return found if isinstance(found, str) else None


def described(event: object) -> tuple[str, Any]:
    """The type and the data, as JSON values, of an instance of a declared class.

    Raises:
        TypeError: Its class was not declared.
        DataMismatch: It holds what its own class does not allow.
    """
    shape = type(event)
    of = declared(shape)
    if of is None:
        raise TypeError(f"{shape.__qualname__} is the data of no event type: declare it with @mesh.event_type(...)")
    data = msgspec.to_builtins(event, str_keys=True)
    try:
        msgspec.convert(data, shape, str_keys=True)
    except msgspec.ValidationError as error:
        place, fault = _fault(error)
        raise DataMismatch(
            f"the data of {of} is not what {shape.__qualname__} says, at {place}",
            expected=shape.__qualname__,
            got=fault,
            next="put it right: nobody who reads it by its class could take it",
            path=place,
        ) from None
    return of, data


def data_of(event: Admitted, shape: type[T]) -> T:
    """The data of *event* as a *shape*: a declared class, or anything else that msgspec converts to.

    Raises:
        Reject: It does not fit, or *shape* is declared for another type. No retry can help.
    """
    of = declared(shape)
    if of is not None and versioned(of) != versioned(event.type):
        raise Reject(f"data-mismatch: {event.type} is not {of}")
    try:
        return msgspec.convert(event.data, shape, str_keys=True)
    except msgspec.ValidationError as error:
        raise Reject("data-mismatch at {}: {}".format(*_fault(error))) from None


def _fault(error: msgspec.ValidationError) -> tuple[str, str]:
    """Where it does not fit and how, without any value."""
    text = str(error)
    place = _PLACE.search(text)
    head = text[: place.start()] if place else text
    return place[1] if place else "$", head if _SAID.fullmatch(head) else "not a value that the type allows"


# --- what a handler asks for -----------------------------------------------------------------------------------------


class Wanted(typing.NamedTuple):
    """What a handler is called with.

    Attributes:
        shapes: What the data has to fit, for each parameter that wants it.
        take: From an event to the arguments; raises `Reject` where the data does not fit.
    """

    shapes: tuple[Any, ...]
    take: Callable[[Admitted], tuple[Any, ...]]


def wanted(handler: Callable[..., object], *, skip: int = 0, known: tuple[type, ...] = ()) -> Wanted:
    """What *handler* asks for: the event, its data, or both, in any order.

    A parameter annotated with `mesh.Admitted` wants the event; with anything else, the data as that. Without annotation
    it is `data` that wants the data as it is, and any other name the event.

    Args:
        handler: To be called.
        skip: How many parameters come first that are somebody else's, such as a database connection.
        known: Classes that its annotations may name, wherever they are defined.

    Raises:
        ConfigError: It has parameters that nobody can fill.
    """
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some builtins have none
        return Wanted((), lambda event: (event,))
    asked = list(_parameters(handler, signature))[skip:]
    names = {shape.__name__: shape for shape in known}
    shapes = [_shape(handler, parameter, names) for parameter in asked]
    if len(asked) == 1 and shapes[0] is Admitted:
        return Wanted((), lambda event: (event,))
    if not asked or shapes.count(Admitted) > 1:
        raise _unfit(handler, f"{len(asked)} parameters that want the event")
    for shape in shapes:
        _check_shape(handler, shape)

    def take(event: Admitted) -> tuple[Any, ...]:
        return tuple(event if s is Admitted else event.data if s is Any else data_of(event, s) for s in shapes)

    return Wanted(tuple(shape for shape in shapes if shape is not Admitted), take)


def _parameters(handler: object, signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    """The parameters that have to be filled by position; `*args` counts as one where there are no others."""
    named = [p for p in signature.parameters.values() if p.kind in _POSITIONAL and p.default is p.empty]
    yield from named
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise _unfit(handler, f"the keyword {parameter.name}")
        if parameter.kind is parameter.VAR_POSITIONAL and not named:
            yield parameter.replace(annotation=parameter.empty)


def _shape(handler: Callable[..., object], parameter: inspect.Parameter, known: Mapping[str, type]) -> Any:
    """What a parameter wants: `Admitted`, `Any` for the data as it is, or what the data is to become."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        if annotation.rpartition(".")[2] == _EVENT:
            return Admitted
        annotation = _resolved(handler, parameter.name, annotation, known)
    if annotation in {parameter.empty, Any, object}:
        return Any if parameter.name == "data" else Admitted
    return annotation


def _resolved(handler: Callable[..., object], name: str, text: str, known: Mapping[str, type]) -> Any:
    function = inspect.unwrap(getattr(handler, "func", handler))  # of a partial
    if not hasattr(function, "__globals__"):
        function = getattr(function, "__func__", None) or type(function).__call__
    holder = SimpleNamespace(__annotations__={name: text})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}), dict(known), include_extras=True)[
            name
        ]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"the annotation of {name} in the handler {_name(handler)} cannot be looked up",
            expected="a name of its module, imported at run time",
            got=text,
            next="define the class at the top of the module, and not under `if TYPE_CHECKING`",
        ) from error


def _check_shape(handler: object, shape: Any) -> None:
    if shape in {Admitted, Any}:
        return
    try:
        info = msgspec.inspect.type_info(shape)
    except TypeError as error:
        raise _unfit(handler, str(error)) from error
    if isinstance(info, msgspec.inspect.CustomType):
        raise _unfit(handler, getattr(shape, "__qualname__", str(shape)))


def _unfit(handler: object, got: str) -> ConfigError:
    return ConfigError(
        f"the handler {_name(handler)} asks for what an event has not",
        expected="(event), (data), or both; an event is annotated with mesh.Admitted, data with its class",
        got=got,
        next="bind everything else first, with functools.partial or a closure",
    )


def _name(handler: object) -> str:
    return str(getattr(handler, "__qualname__", None) or type(handler).__qualname__)


def taking_the_event(wrapper: Callable[..., object]) -> None:
    """Say that *wrapper* asks for the event, whatever the function it wraps asks for."""
    parameter = inspect.Parameter("event", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Admitted)
    wrapper.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
