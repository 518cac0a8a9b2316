"""The sender of push against a real application: what a half-written file of a secret does, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from standardwebhooks import Webhook

from agent.push.requests import Request
from agent.push.sender import Sender
from agent.push.settings import PushTarget
from agent.push.verdict import Taken
from mesh.errors import ConfigError
from tests.contract.push_mesh import App

pytestmark = pytest.mark.anyio

OLD, NEW = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
TOKEN = "0123456789abcdef"
EVENT = Request([("Content-Type", "application/cloudevents+json")], b'{"id":"1"}')


@pytest.mark.parametrize("half", ["", "whsec_", "whsec_MfKQ9r8G", "not base64!"])
async def test_a_half_written_secret_leaves_the_last_good_one_in_force(tmp_path: Path, half: str) -> None:
    """A rotation that is caught in the middle costs nothing; once it is done, the new secret signs."""
    file = tmp_path / "secret"
    file.write_text(OLD)
    async with App.running() as app:
        target = PushTarget(name="contacts", url=app.url, mode="standard-webhooks", secret_files=("secret",))
        sender = Sender(target, tmp_path, check_s=0)
        for text, secret in ((OLD, OLD), (half, OLD), (NEW, NEW)):
            file.write_text(text)
            assert await sender.send(EVENT, "evt_1") == Taken("http-204")
            assert Webhook(secret).verify(app.posted[-1].body, dict(app.posted[-1].headers))
        await sender.close()


@pytest.mark.parametrize("half", ["0123", f"{TOKEN}\n{TOKEN}", f"{TOKEN}\x00", f"{TOKEN} {TOKEN}", f"{TOKEN}\u00e9"])
async def test_a_token_that_fits_in_no_field_is_not_sent(tmp_path: Path, half: str) -> None:
    """Nor does it make a dead letter of an event: the last good one goes on, and no agent starts with it."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with App.running() as app:
        target = PushTarget(name="contacts", url=app.url, token_file="token")
        sender = Sender(target, tmp_path, check_s=0)
        file.write_text(half)
        assert await sender.send(EVENT) == Taken("http-204")
        assert app.posted[-1].headers["Authorization"] == f"Bearer {TOKEN}"
        await sender.close()
    with pytest.raises(ConfigError):
        Sender(target, tmp_path, check_s=0)


async def test_localhost_in_any_case_is_connected_to(tmp_path: Path) -> None:
    """What the settings accept is delivered."""
    async with App.running() as app:
        sender = Sender(PushTarget(name="contacts", url=f"http://LocalHost:{app.port}/"), tmp_path, check_s=0)
        assert await sender.send(EVENT) == Taken("http-204")
        await sender.close()
