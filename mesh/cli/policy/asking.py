"""What `mesh policy explain` is asked: who, what, which event. Everything unclear is misuse, said before any answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

from mesh.cli.policy.options import now_ms
from mesh.errors import ConfigError
from mesh.event import Limits, draft_from_structured
from mesh.jsontext import decode, encode
from mesh.policy.compile import Plans
from mesh.policy.explain import Explanation, no_bundle
from mesh.policy_files import read_directory
from mesh.subjects import check_type


def asked(team: str | None, agent: str | None, publish: str | None, subscribe: str | None, view: str | None) -> str:
    """The type that is asked about. Raises ConfigError where the question is none."""
    if (team is None) == (agent is None):
        _misuse("say who: exactly one of --team and --agent", got="both" if team else "neither")
    if publish is None and subscribe is None:
        _misuse("say what: exactly one of --publish TYPE and --subscribe TYPE", got="neither")
    if publish is not None and subscribe is not None:
        _misuse("say what: exactly one of --publish TYPE and --subscribe TYPE", got="both")
    if publish is not None and view is not None:
        _misuse("--view goes with --subscribe: publishing makes a copy for every view that somebody reads", got=view)
    return check_type(publish if publish is not None else subscribe or "")


def _misuse(message: str, *, got: str) -> NoReturn:
    raise ConfigError(
        message,
        expected="(--team X | --agent A) (--publish | --subscribe) TYPE --event FILE",
        got=got,
        next="`mesh policy explain --help` shows examples",
    )


def event_of(path: Path | None, type_: str) -> dict[str, Any]:
    """The event as an agent's door would take it; of the type that is asked about where it names none."""
    if path is None:
        _misuse("say which event: --event FILE", got="none")
    limits = Limits()
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limits.max_batch_bytes + 1)
        else:
            with path.open("rb") as stream:
                data = stream.read(limits.max_batch_bytes + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read",
            expected="a CloudEvent as JSON",
            got=error.strerror or type(error).__name__,
            next="name another --event",
        ) from None
    if len(data) <= limits.max_batch_bytes:
        data = encode({"type": type_, **decode(data.removeprefix(b"\xef\xbb\xbf"))})
    return draft_from_structured(data, now_ms=now_ms(), limits=limits).fields


def nothing_to_ask(directory: Path, *, publishing: bool) -> Explanation | None:
    """The answer where the directory holds no policies at all: no file, or nothing but comments."""
    if not directory.is_dir():
        return None
    lines = (line.strip() for text in read_directory(directory).values() for line in text.splitlines())
    return (
        None if any(line and line != "---" and line[0] != "#" for line in lines) else no_bundle(publishing=publishing)
    )


def reader(plans: Plans, team: str | None, agent: str | None) -> str:
    """The team that reads. Raises ConfigError where the tenant does not know it."""
    tenancy = plans.tenancy
    if agent is not None:
        _known("agent", agent, tenancy.team_of)
        return tenancy.team_of[agent]
    _known("team", team or "", tenancy.members)
    return team or ""


def publisher(plans: Plans, team: str | None, agent: str | None) -> str:
    """The agent that publishes. Raises ConfigError where it is not clear."""
    tenancy = plans.tenancy
    if agent is not None:
        _known("agent", agent, tenancy.team_of)
        return agent
    _known("team", team or "", tenancy.members)
    members = sorted(tenancy.members[team or ""])
    if len(members) != 1:
        raise ConfigError(
            f"team {team} has {len(members)} agents, and it is an agent that publishes",
            expected=" or ".join(f"--agent {member}" for member in members) or "a team with an agent",
            got=f"--team {team}",
            next="name the agent",
        )
    return members[0]


def check_view(plans: Plans, view: str | None) -> None:
    """Raises ConfigError where the policies declare no such view."""
    if view is not None:
        _known("view", view, plans.tenancy.views)


def _known(noun: str, name: str, known: Any) -> None:
    if name not in known:
        raise ConfigError(
            f"the policies have no {noun} {name}",
            expected=", ".join(sorted(known)) or f"a {noun}",
            got=name,
            next=f"use the name of {'an' if noun[0] in 'aeiou' else 'a'} {noun} that the policies declare",
        )
