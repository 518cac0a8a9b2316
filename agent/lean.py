"""What a running agent does without: the HTTP client of the library whose HTTP server it is.

`import aiohttp.web_protocol` first imports the package, and that imports the client, which reads the machine's root
certificates before anybody asks for them: 7 MB and a tenth of the start. An agent that pushes needs it, and has it as
soon as it asks. This is the process's own choice (`agent.process`); who embeds an agent gets aiohttp as it is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

_PACKAGE = "aiohttp"


def without_http_client() -> None:
    """Have aiohttp's modules load one by one, and the whole package when something of it is asked for by name.

    Has no effect once it is imported: call it first.
    """
    spec = find_spec(_PACKAGE)
    if _PACKAGE in sys.modules or spec is None or spec.loader is None:
        return
    loader, package = spec.loader, module_from_spec(spec)

    def ask(name: str) -> Any:
        if find_spec(f"{_PACKAGE}.{name}") is not None:
            return import_module(f"{_PACKAGE}.{name}")
        if not name.startswith("__") and "__getattr__" in package.__dict__:
            del package.__dict__["__getattr__"]
            loader.exec_module(package)
            return getattr(package, name)
        raise AttributeError(name, name=name, obj=package)

    package.__dict__["__getattr__"] = ask  # PEP 562
    package.__dict__["__version__"] = ""  # for a constant of its server, which we answer nothing with
    sys.modules[_PACKAGE] = package
