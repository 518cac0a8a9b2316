"""Who asks for a change: the operating system's name of the user, kept with what was changed."""

from __future__ import annotations

import getpass


def author() -> str:
    """The user's name; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
