"""How a subscription is delivered, in words: attempts, waits, order, client, rate, and when it pauses by itself."""

from __future__ import annotations

from mesh.policy.grants import SubscriptionGrant


def pacing(grant: SubscriptionGrant) -> list[str]:
    """All of it, a few words each; of two subscriptions that are delivered alike they are the same."""
    backoff = ", ".join(f"{delay:g}" for delay in grant.retry.backoff_s)
    return [
        _counted(grant.retry.attempts, "attempt"),
        f"again after {backoff} s",
        f"ack within {grant.ack_wait_s:g} s",
        f"{grant.max_in_flight} in hand at most",
        *_paces(grant),
    ]


def unusual(grant: SubscriptionGrant) -> list[str]:
    """What of order, client, rate and pauses is not as it is where a Subscription says nothing."""
    usual = _paces(SubscriptionGrant("", "", "", ()))
    return [words for words in _paces(grant) if words not in usual]


def changed(before: SubscriptionGrant, after: SubscriptionGrant) -> tuple[str, str]:
    """What one is delivered by and the other is not, and the other way round; both empty where they are alike."""
    was, now = pacing(before), pacing(after)
    return ", ".join(w for w in was if w not in now), ", ".join(w for w in now if w not in was)


def _paces(grant: SubscriptionGrant) -> list[str]:
    rate, breaker, poison = grant.rate, grant.breaker, grant.poison
    return [
        "each partition key in order" if grant.ordered else "in any order",
        "pulled by a plain NATS client" if grant.client == "nats" else "pulled by the library or an agent",
        "at any rate" if rate is None else f"{_rate(rate.per_s)} at most",
        f"left alone for {breaker.open_s:g} s after {_counted(breaker.failures, 'failure')} in a row"
        if breaker.failures
        else "tried however often it fails",
        f"paused once over {poison.share:.0%} of the last {poison.of} events are dead letters"
        if poison.share < 1
        else "never paused for dead letters",
    ]


def _rate(per_s: float) -> str:
    return f"{per_s:g} a second" if per_s >= 1 else f"{per_s * 60:g} a minute"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
