"""What settings say of a mistake: the file, the name, what is allowed. Pure; every table of `agent.toml` uses it."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from mesh.errors import ConfigError, MeshError
from mesh.subjects import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable


def unknown(name: str, where: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is no setting; it names the one that was probably meant."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return ConfigError(
        f"{where} sets {name}, which is no setting",
        expected=f"{near[0]}?" if near else "a setting that `mesh-agent config` lists",
        got=name,
        next="secrets are never settings: name the file that holds one",
    )


def wrong(name: str, where: str, expected: str, got: str) -> ConfigError:
    """The error for a value that a setting cannot have."""
    return ConfigError(f"{where}: {name} must be {expected}, not {got}", expected=expected, got=got, next=f"fix {name}")


def table(value: Any, where: str, known: Iterable[str]) -> dict[str, Any]:
    """*value* as a table whose keys are among *known*. Raises ConfigError."""
    if not isinstance(value, dict):
        raise wrong("it", where, "a table", type(value).__name__)
    for key in value:
        if key not in known:
            raise unknown(key, where, known)
    return value


def texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """*value* as a list of texts, none empty. Raises ConfigError."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise wrong(name, where, "a list of texts", type(value).__name__)
    return tuple(value)


def text(value: Any, name: str, where: str) -> str:
    """*value* as a text. Raises ConfigError."""
    if not isinstance(value, str):
        raise wrong(name, where, "a text", type(value).__name__)
    return value


def number(value: Any, name: str, where: str, *, low: float, high: float, unit: str) -> float:
    """*value* as a number within its bounds. Raises ConfigError."""
    if type(value) not in (int, float):
        raise wrong(name, where, "a number", type(value).__name__)
    if not low <= value <= high:
        raise wrong(name, where, f"{low:g} to {high:g} {unit}", f"{value:g}")
    return float(value)


def named(name: str, where: str) -> None:
    """Check that *name* can name something. Raises ConfigError."""
    try:
        check_name(name)
    except MeshError as error:
        raise ConfigError(f"{where}: {error}", expected=error.expected, got=error.got, next="rename it") from None
