"""What must hold of how a subscription is delivered: retries, order, who pulls, and when it pauses by itself."""

from __future__ import annotations

from mesh.policy.bind import Path as At
from mesh.policy.bind import shown
from mesh.policy.check_fields import attempt
from mesh.policy.check_masks import Note
from mesh.policy.model_delivery import Breaker, Poison, Retry, SubscriptionSpec
from mesh.policy.texts import per_second, seconds
from mesh.retry import MAX_DELAY_S

MAX_RATE_PER_S = 100_000.0  # more than a replica handles: no limit is written by leaving `rate` out
MIN_OPEN_S = 0.1  # a breaker that opens for less is none

# Kept by our library: it counts, waits and orders; to another NATS client the server alone delivers.
_OURS = ("order_by", "rate", "breaker", "poison")


def check_retry(retry: Retry, at: At, note: Note) -> None:
    """Note what is wrong with *retry*, which stands *at* a place of its document."""
    for index, text in enumerate(retry.backoff or ()):
        _delay(text, (*at, "backoff", index), note)
    if retry.ack_wait is not None and _delay(retry.ack_wait, (*at, "ack_wait"), note) == 0.0:
        note((*at, "ack_wait"), "an `ack_wait` of nothing redelivers at once, for ever", "use 1s or more")


def check_delivery(spec: SubscriptionSpec, note: Note) -> None:
    """Note what is wrong with how a Subscription is to be delivered."""
    check_retry(spec.retry, ("spec", "retry"), note)
    if spec.rate is not None:
        _rate(spec.rate, note)
    if spec.breaker.open is not None:
        _open(spec.breaker.open, note)
    share = spec.poison.share
    if share is not None and not 0 < share <= 1:
        fix = "use a share such as 0.5; 1 never pauses"
        note(("spec", "poison", "share"), f"`{share:g}` is no share: above 0, at most 1", fix)
    if spec.client == "nats":
        _plain(spec, note)


def _rate(text: str, note: Note) -> None:
    at: At = ("spec", "rate")
    rate: float | None = attempt(per_second, text, at, note)
    if rate == 0:
        note(at, "a rate of nothing delivers nothing", "use 1/min or more; to stop delivery remove the subscription")
    elif rate is not None and rate > MAX_RATE_PER_S:
        fix = f"use {MAX_RATE_PER_S:.0f}/s or less, or remove `rate`: without it nothing is held back"
        note(at, f"`{shown(text)}` is more than a replica handles", fix)


def _open(text: str, note: Note) -> None:
    at: At = ("spec", "breaker", "open")
    open_s = _delay(text, at, note)
    if open_s is not None and open_s < MIN_OPEN_S:
        note(at, f"a breaker that opens for `{shown(text)}` is none", "use 100ms or more, or `failures: 0` for none")


def _plain(spec: SubscriptionSpec, note: Note) -> None:
    """A plain client settles by itself: what our library keeps cannot be asked for."""
    usual = {"order_by": None, "rate": None, "breaker": Breaker(), "poison": Poison()}
    for key in _OURS:
        if getattr(spec, key) != usual[key]:
            fix = f"remove `{key}`, or `client: nats` and pull with the library or the agent"
            note(("spec", key), f"`{key}` is kept by the mesh's own library; a plain NATS client knows none", fix)
    if spec.retry.backoff is not None:
        fix = "remove `backoff`, or `client: nats`; a plain client says with each nak how long to wait"
        note(("spec", "retry", "backoff"), "a plain NATS client retries after `ack_wait`, or as it says itself", fix)


def _delay(text: str, at: At, note: Note) -> float | None:
    delay: float | None = attempt(seconds, text, at, note)
    if delay is not None and delay > MAX_DELAY_S:
        note(at, f"`{shown(text)}` is longer than a day", "use 24h or less; to wait longer is a schedule")
    return delay
