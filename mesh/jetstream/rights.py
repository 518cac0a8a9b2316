"""What an account's JWT lets its users do, in words: publish, read, create.

Read from the claims as the server has them, whatever they say; nothing here knows what ought to be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.jetstream.durables import REDRIVE, is_sideline, slot_in, subscription_of
from mesh.jetstream.transition import filters_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.jetstream.topology import Config

    Consumers = Mapping[tuple[str, str], Config]

EVERYTHING = "everything in its account"

_API = "$JS.API."
_NEXT = "$JS.API.CONSUMER.MSG.NEXT."
_ACK = "$JS.ACK."
_DIRECT = "$JS.API.DIRECT.GET."
_GET = "$JS.API.STREAM.MSG.GET."
_LOOKS = ("STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.", "CONSUMER.NAMES.", "CONSUMER.LIST.", "CONSUMER.INFO.", "INFO")
_BUCKETS = {
    "KV_mesh_policy": "policy bundles",
    "KV_mesh_trust": "certificates and the trust statement",
    "REPORTS": "reports",
}
_PLAIN = {
    "dlq": "dead letters of {}",
    "audit": "audit records of {}",
    "report": "reports of {}",
    "ctl.enrol": "requests for certificates of {}",
}


@dataclass(frozen=True, slots=True)
class Rights:
    """What somebody can do on the server, a sentence each, sorted."""

    publish: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    create: tuple[str, ...] = ()


def rights_of(
    nats: Mapping[str, Any], *, owner: str, consumers: Consumers, leave_out: Iterable[tuple[str, str]] = ()
) -> Rights:
    """The rights of an account's users.

    Args:
        nats: The account's claims, as under `nats` in its JWT.
        owner: Public key of the tenant's account, whose subjects are the mesh's.
        consumers: Of the tenant, by stream and name: what a pull delivers.
        leave_out: Account and subject of imports that are told elsewhere.
    """
    limits, left_out = nats.get("limits", {}), set(leave_out)
    if limits.get("conn") == 0:
        return Rights()
    found = _Found(consumers)
    if limits.get("disk_storage") or limits.get("mem_storage"):
        found.publish.add(EVERYTHING)
        found.read.add(EVERYTHING)
        found.create.add("streams and consumers, also mirrors of what others publish to it")
    for one in nats.get("imports", ()):
        if (one.get("account"), one.get("subject")) in left_out:
            continue
        if one.get("account") == owner:
            found.add(str(one.get("subject", "")), str(one.get("type", "")))
        else:
            verb = "read" if one.get("type") == "stream" else "publish"
            getattr(found, verb).add(f"{one.get('subject')} of the account {one.get('account')}")
    return found.rights()


def in_words(subject: str, kind: str, consumers: Consumers) -> str:
    """One import of a tenant's subject: verb and object."""
    found = _Found(consumers)
    found.add(subject, kind)
    rights = found.rights()
    return "; ".join(
        f"{verb} {', '.join(said)}"
        for verb, said in (("publish", rights.publish), ("read", rights.read), ("create", rights.create))
        if said
    )


class _Found:
    """Rights while they are collected: one pattern in several views is one sentence, a pull and its ack another."""

    def __init__(self, consumers: Consumers) -> None:
        self._consumers = consumers
        self._events: dict[tuple[str, str, str], set[str]] = {}
        self._pulls: set[str] = set()
        self._acks: set[str] = set()
        self.publish: set[str] = set()
        self.read: set[str] = set()
        self.create: set[str] = set()

    def add(self, subject: str, kind: str) -> None:
        """One import."""
        if kind == "stream":
            self.read.add("notices" if subject == "ctl.notice" else f"messages on {subject}")
        elif subject.startswith(_NEXT):
            self._pulls.add(subject.removeprefix(_NEXT))
        elif subject.startswith(_ACK):
            self._acks.add(subject.removeprefix(_ACK).removesuffix(".>"))
        elif subject.startswith((_DIRECT, _GET)):
            self.read.add(_stored(subject))
        elif subject.startswith(_API):
            looks = subject.removeprefix(_API).startswith(_LOOKS)
            (self.read if looks else self.create).add(f"through the JetStream API: {subject}")
        elif subject.startswith("ev."):
            self._event(subject)
        else:
            self.publish.add(_plain(subject))

    def _event(self, subject: str) -> None:
        parts = _split(subject)
        if parts is None:
            self.publish.add(f"events on {subject}, in any view")
        else:
            site, view, slot, types = parts
            self._events.setdefault((types, site, slot), set()).add(_view(view))

    def rights(self) -> Rights:
        """All of them."""
        publish = {_events(*key, views) for key, views in self._events.items()}
        read = {self._delivered(durable) for durable in self._pulls}
        alone = self._acks - self._pulls
        read |= {f"the next event of {_place(durable)}, through its ack subject (+NXT)" for durable in alone}
        return Rights(
            tuple(sorted(self.publish | publish)), tuple(sorted(self.read | read)), tuple(sorted(self.create))
        )

    def _delivered(self, durable: str) -> str:
        """What a pull delivers; *durable* is `<stream>.<name>`."""
        stream, _, name = durable.partition(".")
        acks = "" if durable in self._acks else ", without an ack"
        if "*" in durable or ">" in durable:
            return f"what every durable in {_place(durable)} delivers{acks}"
        config = self._consumers.get((stream, name))
        if config is None and is_sideline(name):
            return f"what is replayed or redriven to {subscription_of(name)}, while something is{acks}"
        if config is None:
            return f"nothing: {_place(durable)} is not there"
        by_types: dict[str, set[str]] = {}
        said = set()
        for text in filters_of(config) or (">",):
            parts = _split(text)
            if parts is None:
                said.add(_again(text) if name.endswith(f"--{REDRIVE}") else f"everything on {text}")
            else:
                by_types.setdefault(parts[3], set()).add(_view(parts[1]))
        said |= {f"{types} in {', '.join(sorted(views))}" for types, views in by_types.items()}
        return f"{'; '.join(sorted(said))}: {_place(durable)}{acks}"


def _split(subject: str) -> list[str] | None:
    """Site, view, slot and types of `ev.<site>.<view>.<slot>.<types>`; None for anything wider."""
    tokens = subject.split(".", 4)
    return tokens[1:] if len(tokens) == 5 and tokens[0] == "ev" and ">" not in tokens[:4] else None  # noqa: PLR2004


def _view(name: str) -> str:
    return "every view" if name == "*" else name


def _events(types: str, site: str, slot: str, views: set[str]) -> str:
    where = "" if slot == "*" else f", slot {slot} alone"
    return f"{types} in {', '.join(sorted(views))} ({'every site' if site == '*' else f'site {site}'}{where})"


def _again(subject: str) -> str:
    """What a redrive delivers."""
    family, _, whose = subject.partition(".")
    return f"dead letters of {whose.replace('.', '/')}, again" if family == REDRIVE else f"everything on {subject}"


def _place(durable: str) -> str:
    """A durable and its stream; those of all slots are told as one."""
    stream, _, name = durable.partition(".")
    if (slot := slot_in(name)) != "*":
        name = f"{name.removesuffix(slot)}s*"
    return f"{name or 'anything'} on {stream}"


def _stored(subject: str) -> str:
    """What a read of stored messages reaches."""
    if subject.startswith(_GET):
        return f"any stored message of {subject.removeprefix(_GET)}, by sequence"
    stream, _, below = subject.removeprefix(_DIRECT).partition(".")
    what = _BUCKETS.get(stream)
    if what is None or not below:
        return f"any stored message of {stream}" + (f" on {below}" if below else "")
    key = below.removeprefix(f"$KV.{stream.removeprefix('KV_')}.").removeprefix("report.")
    return f"{what} ({key})"


def _plain(subject: str) -> str:
    for family, words in _PLAIN.items():
        if subject.startswith(f"{family}."):
            return words.format(subject.removeprefix(f"{family}.").removesuffix(".*").replace(".", "/"))
    return f"requests on {subject}"
