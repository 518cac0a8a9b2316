"""What schemathesis is told beside the documents (`SCHEMATHESIS_HOOKS`): how GitHub signs, and what an integer is.

It signs only where the request has a signature to begin with, so that requests without one stay so.
"""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from typing import Any

import schemathesis
from requests import PreparedRequest
from requests.auth import AuthBase

SECRET = os.environ.get("HOOK_SECRET", "").encode()
SIGNATURE = "X-Hub-Signature-256"


class GitHub(AuthBase):
    """Puts a right signature in the place of a random one."""

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Sign the body as it will be sent."""
        body = r.body or b""
        raw = body.encode() if isinstance(body, str) else body
        assert isinstance(raw, bytes), "streamed bodies are not made here"
        if SIGNATURE in r.headers:
            r.headers[SIGNATURE] = "sha256=" + hmac.new(SECRET, raw, sha256).hexdigest()
        return r


if SECRET:
    schemathesis.auths.GLOBAL_AUTH_STORAGE.set_from_requests(GitHub())


def whole(value: Any) -> Any:
    """*value* with `1.0` as `1`: JSON Schema calls both an integer, the door looks at how it is written."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Numbers as a program writes them."""
    return whole(body)
