"""What a case of a PolicyTest expects of one path, and whether the event it came to holds it.

    absent                       the view leaves it out
    clear                        it is as it was
    redacted                     it is `[REDACTED]` or null, and was not
    {pseudonym: <domain>}        it is the token of the value in that domain
    {encrypted: [<team>, ...]}   it is encrypted for exactly these teams
    {equals: <value>}            it is this JSON value; for values that look like one of the words here
    <anything else>              it is this JSON value

A path that leads to several places asks for the same at each of them, and a trailing `.**` is the node itself. Where
the event itself has nothing at the path, the expectation fails whatever it says: it would hold under any policy.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from mesh.policy.actions import REDACTED, key_id
from mesh.policy.ciphers import cipher_name, decrypt_fields
from mesh.policy.model_masks import With
from mesh.policy.paths import Path
from mesh.policy.places import MISSING, Place, find, value_at, written
from mesh.policy.trial import TRIAL_KEYS

WORDS = ("absent", "clear", "redacted")
FORMS = ("pseudonym", "encrypted", "equals")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that is not as expected.

    Attributes:
        path: Where: of the policy test, or the place in its event.
        expected, got: In words; of fields, values of the test's own event may be in them.
    """

    path: str
    expected: str
    got: str


def compare(
    text: str, wanted: Any, original: Mapping[str, Any], event: Mapping[str, Any]
) -> tuple[list[Mismatch], list[Place]]:
    """Hold what *event* shows at the path *text* against *wanted*.

    Args:
        text: The path.
        wanted: A word, a form or a JSON value, as above.
        original: The event before masking.
        event: What the reader is handed.

    Returns:
        What differs, and the places in *original* that were looked at.

    Raises:
        BadPattern: The path does not parse.
    """
    path = Path.parse(text)
    before, after = find(path, original), find(path, event)
    places = list(before)
    if not before and not after:
        return [Mismatch(text, describe(wanted), "the event has nothing there: any policy would do")], places
    if wanted == "absent":
        return [Mismatch(written(place), "absent", said(value)) for place, value in after.items()], places
    found = []
    for place in dict.fromkeys((*before, *after)):
        value, was = value_at(event, place), value_at(original, place)
        if not _holds(wanted, value, was, event, place):
            got = "absent" if value is MISSING else said(value)
            if wanted == "redacted" and same(value, was):
                got += ", as the event has it"
            found.append(Mismatch(written(place), describe(wanted), got))
    return found, places


def describe(wanted: Any) -> str:
    """An expectation in words."""
    form = form_of(wanted)
    if form is None:
        return str(wanted) if _is_word(wanted) else said(wanted)
    name, value = form
    if name == "pseudonym":
        return f"a pseudonym of the domain {value}"
    if name == "encrypted":
        return f"encrypted for {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
    return said(value)


def said(value: Any) -> str:
    """A JSON value as text."""
    return msgspec.json.encode(value, order="sorted").decode()


def _is_word(wanted: Any) -> bool:
    return isinstance(wanted, str) and wanted in WORDS


def form_of(wanted: Any) -> tuple[str, Any] | None:
    """The name and the value of `{pseudonym: ...}`, `{encrypted: ...}` or `{equals: ...}`; None for anything else."""
    if isinstance(wanted, Mapping) and len(wanted) == 1:
        ((name, value),) = wanted.items()
        if name in FORMS:
            return name, value
    return None


def _holds(wanted: Any, value: Any, was: Any, event: Mapping[str, Any], place: Place) -> bool:
    """Whether *value*, which *was* something else or the same, is as *wanted*; it stands at *place* in *event*."""
    if value is MISSING:
        return False
    form = form_of(wanted)
    if form is None:
        if wanted == "clear":
            return same(value, was)
        if wanted == "redacted":
            return (value is None or value == REDACTED) and not same(value, was)
        return same(value, wanted)
    name, given = form
    if name == "pseudonym":
        return _is_token(value, was, str(given))
    if name == "encrypted":
        return not same(value, was) and same(_opened(event, given, place), was)
    return same(value, given)


def _opened(event: Mapping[str, Any], teams: Any, place: Place) -> Any:
    """The value at *place* as it is to whoever has the keys that encrypt for exactly *teams*."""
    readers = tuple(str(team) for team in teams) if isinstance(teams, list | tuple) else (str(teams),)
    names = [cipher_name(With(mode=mode, readers=readers)) for mode in ("deterministic", "random")]
    keys = {name: TRIAL_KEYS.cipher(name) for name in names}
    return value_at(decrypt_fields(event, keys, str(event.get("tenant", ""))), place)


def same(one: Any, two: Any) -> bool:
    """Whether two JSON values are equal; true is not 1, as it is to Python."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(value, two[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def _is_token(value: Any, was: Any, domain: str) -> bool:
    """Whether *value* is the pseudonym of *was* in *domain*, by whichever hash and length the view asks for."""
    key = TRIAL_KEYS.domain(domain)
    prefix = f"p{key_id(key)}_"
    if not isinstance(value, str) or not value.startswith(prefix):
        return False
    text = value.removeprefix(prefix)
    try:
        digest = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (NotBase64, ValueError):
        return False
    data = was.encode() if isinstance(was, str) else msgspec.json.encode(was)
    size = len(digest)
    if not 0 < size <= blake2b.MAX_DIGEST_SIZE:
        return False
    return digest in (blake2b(data, digest_size=size, key=key).digest(), hmac.digest(key, data, "sha256")[:size])
