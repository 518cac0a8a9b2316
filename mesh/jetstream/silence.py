"""What the acks of one stream tell: after how long without one it is silent, and which events lie behind later ones.

Pure.
"""

from __future__ import annotations


class Silence:
    """Of one lane.

    Args:
        least_s: No stream is silent before that.
        most_s: Every stream is silent by then.

    Attributes:
        hold_s: Without an ack for that long the stream is silent: twice what an ack takes, within these limits.
        overtaken: Events that the stream stored behind later ones, as far as its acks show them.
    """

    def __init__(self, least_s: float, most_s: float) -> None:
        self.hold_s = least_s
        self.overtaken = 0
        self._least_s = least_s
        self._most_s = most_s
        self._usual_s = 0.0  # a moving average; 0 before the first
        self._newest = 0  # of the events whose place is known
        self._newest_place = 0  # its sequence in the stream

    def took(self, seconds: float) -> None:
        """An ack of an event that had nothing before it on its way took that long.

        Others say how long our own queue is: a lane at its limit would take half a second for usual.
        """
        self._usual_s += (seconds - self._usual_s) / 8 if self._usual_s else seconds
        self.hold_s = max(self._least_s, min(2 * self._usual_s, self._most_s))

    @property
    def place(self) -> int:
        """Where the stream has the newest event whose place is known; 0 before the first."""
        return self._newest_place

    def placed(self, order: int, sequence: int) -> None:
        """The stream has the event that was submitted as number *order* at *sequence*."""
        if order > self._newest:
            self.overtaken += sequence < self._newest_place  # the one before it came later, and was acknowledged first
            self._newest, self._newest_place = order, sequence
        else:
            self.overtaken += sequence > self._newest_place
