"""Subjects that NATS does not take from us, though their stream is there: refused for a while, then tried by one event.

Pure: time comes in as monotonic seconds.
"""

from __future__ import annotations

from mesh.errors import SubjectRefused
from mesh.jetstream.outgoing import Outgoing


class RefusedSubjects(dict[str, float]):
    """Of one lane: each subject, and when it may be tried again."""

    def refuses(self, subject: str, now: float, *, for_s: float) -> bool:
        """Whether *subject* was refused just now; else whoever asked tries it, and it is refused *for_s* longer."""
        again_at = self.get(subject)
        if again_at is None:
            return False
        if now < again_at:
            return True
        self[subject] = now + for_s
        return False


def refusal(item: Outgoing) -> SubjectRefused:
    """The error of an event on a subject that is not ours to use."""
    return SubjectRefused(
        "NATS does not take this subject from us, though its stream is there",
        next="the grant may follow; else the policy is narrower than this agent believes",
        stream=item.stream,
        subject=item.subject,
    )
