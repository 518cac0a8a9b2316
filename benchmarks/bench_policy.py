"""What do the policies cost: a condition, four masks, a decision; and what do more documents change about it?"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b, sha256
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.policy_sets import TYPE, VIEW, files
from benchmarks.runner import Key, Spread
from mesh.event import encode
from mesh.policy.bundle import Bundle, compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle, seal_bundle
from mesh.policy.expressions import compile_condition
from mesh.policy.load import load

NAME = "policy"
DOCUMENTS = (1, 10, 100, 1000)
CONDITION = "data.amount > 10.0 && data.country in ['DE', 'FR'] && event.type.startsWith('shop.')"
EVENTS = 64  # different ones: what is measured is not one event in the processor's cache
MANY = DOCUMENTS[-1]
ROUNDS = 25
STRUCTURE_ROUNDS = 1  # of loading and compiling: 1,000 documents take seconds, and are for reading
SAMPLE_S = 0.005  # of one case: long against the clock, short against the machine's moods
FIELDS = 20  # of the data; the event has about 1 KB
SLOW = 1.2  # times the best of a fixed loop: what was measured beside such a one is measured again
TAKES = 40  # of one sample at most: 0.3 s
TENANT, AGENT = "bench", "shop"

KEYS = {
    "condition_us": Key("us", must=0.5, aim=0.25, better="less", what="condition: three terms, true for the event"),
    "mask_pipeline_us": Key("us", must=12, aim=8, better="less", what="decode, condition, 4 masks, encode; 1 KB"),
    "decide_us": Key("us", better="less", what="decide: rule, source, condition, views"),
    "documents_ratio": Key("x", must=1.5, aim=1.1, better="less", what="decide and mask: 1,000 documents / 1"),
    **{
        f"{figure}_{n}": Key(unit, better="less", what=f"{n:,} documents: {what}")
        for n in DOCUMENTS
        for figure, unit, what in (
            ("load_ms", "ms", "load, YAML to checked"),
            ("compile_ms", "ms", "compile, to a signed bundle and the grants in NATS"),
            ("adopt_ms", "ms", "adopt, signature to the first event decided and masked"),
            ("decide_us", "us", "decide"),
        )
    },
}


class _Keys:
    """A key for every domain."""

    def domain(self, name: str) -> bytes:
        return sha256(name.encode()).digest()

    def cipher(self, name: str) -> bytes:
        raise KeyError(name)


async def run(quick: bool) -> Mapping[str, float | Spread]:
    """Every figure from one process."""
    return measured(rounds=3 if quick else ROUNDS)


def measured(*, rounds: int) -> dict[str, Spread]:
    """The figures; the cases take turns within each round."""
    bundles, figures = _structure(min(rounds, STRUCTURE_ROUNDS))
    plans = {n: Plans(bundle) for n, bundle in bundles.items()}
    cases: dict[str, Callable[[], object]] = {"condition_us": _condition()}
    for n in DOCUMENTS:
        cases[f"decide_us_{n}"] = _decide(plans[n])
        cases[f"pipeline_{n}"] = _pipeline(plans[n])
    timed = _in_turns(cases, rounds)
    pairs = zip(timed[f"pipeline_{MANY}"], timed["pipeline_1"], strict=True)
    figures |= {name: Spread.of(values) for name, values in timed.items() if name in KEYS}
    figures["mask_pipeline_us"] = Spread.of(timed["pipeline_1"])
    figures["decide_us"] = Spread.of(timed["decide_us_1"])
    figures["documents_ratio"] = Spread.of([many / one for many, one in pairs])
    return figures


def _structure(rounds: int) -> tuple[dict[int, Bundle], dict[str, Spread]]:
    """Load, compile and adopt sets of each size; the bundles, and milliseconds by the names in KEYS."""
    bundles: dict[int, Bundle] = {}
    taken: dict[str, list[float]] = {}
    seed = blake2b(b"benchmark", digest_size=32).digest()
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    body = _event(1)
    for n in DOCUMENTS * rounds:
        began = time.perf_counter()
        policies = load(files(n))
        loaded = time.perf_counter()
        bundle = compile_bundles(policies, revision=1, site="local", trust_domain="mesh.local", created_ms=0)[TENANT]
        envelope = seal_bundle(bundle, seed)
        Plans(bundle).grants(now_ms=0)
        compiled = time.perf_counter()
        assert _show(Plans(open_bundle(envelope, key)), msgspec.json.decode(body))
        adopted = time.perf_counter()
        bundles[n] = bundle
        steps = {"load": loaded - began, "compile": compiled - loaded, "adopt": adopted - compiled}
        for step, seconds in steps.items():
            taken.setdefault(f"{step}_ms_{n}", []).append(seconds * 1e3)
    return bundles, {name: Spread.of(values) for name, values in taken.items()}


def _show(plans: Plans, fields: dict[str, Any]) -> bytes:
    """One event decided and masked, as an agent does first after it adopted a bundle."""
    decision = plans.publisher(AGENT).decide(fields)
    (view,) = decision.views
    return encode(view.mask(fields, _Keys()))


# --- one event -------------------------------------------------------------------------------------------------------


def _event(number: int) -> bytes:
    data = {
        "order": f"o-{number}",
        "amount": 49.9 + number % 7,
        "currency": "EUR",
        "country": "DE",
        "status": "placed",
        "note": "Please leave the parcel with the neighbour on the second floor, and ring twice. " * 4,
        "customer": {
            "id": f"c-{number}",
            "segment": "smb",
            "name": "Ada Lindqvist",
            "email": f"ada.lindqvist.{number}@example.com",
            "phone": "+49 40 1234567",
        },
        "items": [{"sku": f"sku-{i}", "quantity": i, "text": "a thing in a box, " * 3} for i in (1, 2, 3)],
    }
    fields = {
        "specversion": "1.0",
        "id": f"018f4f6e-7c1a-7b8e-9d2c-{number:012x}",
        "source": "/shop/eu",
        "type": TYPE,
        "time": "2026-11-22T09:30:00Z",
        "datacontenttype": "application/json",
        "data": data,
    }
    return msgspec.json.encode(fields)


def _bodies() -> list[bytes]:
    bodies = [_event(number) for number in range(EVENTS)]
    assert all(_leaves(msgspec.json.decode(body)["data"]) == FIELDS for body in bodies)
    assert 950 <= statistics.mean(map(len, bodies)) <= 1075, "not about 1 KB"
    return bodies


def _leaves(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_leaves, value.values()))
    return sum(map(_leaves, value)) if isinstance(value, list) else 1


def _condition() -> Callable[[], object]:
    """The condition for each event; true for all, and false for the same ones from elsewhere."""
    condition = compile_condition(CONDITION, roots=frozenset({"event", "data"})).evaluate
    fields = [msgspec.json.decode(body) for body in _bodies()]
    bindings = [{"event": one, "data": one["data"]} for one in fields]
    assert all(condition(one) for one in bindings)
    assert not any(condition({"event": one, "data": {**one["data"], "country": "US"}}) for one in fields)

    def run() -> None:
        for one in bindings:
            condition(one)

    return run


def _decide(plans: Plans) -> Callable[[], object]:
    """The decision for each event: the rule's condition holds, one view is to be made."""
    decide = plans.publisher(AGENT).decide
    events = [msgspec.json.decode(body) for body in _bodies()]
    assert all([view.name for view in decide(one).views] == [VIEW] for one in events)
    assert not decide({**events[0], "data": {**events[0]["data"], "country": "US"}}).allowed

    def run() -> None:
        for one in events:
            decide(one)

    return run


def _pipeline(plans: Plans) -> Callable[[], object]:
    """Decode, condition, mask (drop, redact, pseudonym, partial) and encode each event."""
    bodies, keys = _bodies(), _Keys()
    decide, decode = plans.publisher(AGENT).decide, msgspec.json.decode

    def one(body: bytes) -> bytes:
        fields = decode(body)
        (view,) = decide(fields).views
        return encode(view.mask(fields, keys))

    customer = msgspec.json.decode(one(bodies[0]))["data"]["customer"]
    assert "name" not in customer, "not dropped"
    assert customer["email"].startswith("p"), "not a pseudonym"
    assert "123" not in customer["phone"], "not partial"
    assert msgspec.json.decode(one(bodies[0]))["type"] == TYPE

    def run() -> None:
        for body in bodies:
            one(body)

    return run


# --- measuring -------------------------------------------------------------------------------------------------------


def _in_turns(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds an event, for each case in each round; the order is another one in each round.

    The machine is shared. A fixed loop runs before and after each sample, and a sample beside which it was `SLOW` times
    slower than ever before is taken again, `TAKES` times at most; of those the one beside the quickest loop counts.
    """
    order = random.Random(1)
    timed: dict[str, list[float]] = {name: [] for name in cases}
    best = min(_fixed_s() for _ in range(200))
    for _ in range(rounds):
        for name in order.sample(list(cases), len(cases)):
            takes: list[tuple[float, float]] = []
            while len(takes) < TAKES and (not takes or min(takes)[0] > SLOW * best):
                before = _fixed_s()
                figure = _per_event_us(cases[name])
                takes.append((max(before, _fixed_s()), figure))
                best = min(best, before)
            timed[name].append(min(takes)[1])
    return timed


def _per_event_us(case: Callable[[], object]) -> float:
    case()
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SAMPLE_S or not done:  # at least once, however busy the machine
        case()
        done += EVENTS
    return took / done * 1e6


def _fixed_s() -> float:
    began = time.perf_counter()
    sum(i * i for i in range(5_000))
    return time.perf_counter() - began
