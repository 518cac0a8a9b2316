"""What an answer to a pushed event means, when a target is left alone, and where a target may be."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from agent.push.addresses import Addresses, refused
from agent.push.pause import Pause
from agent.push.settings import read_hosts
from agent.push.verdict import Failed, Later, Refused, Taken, Verdict, judge
from agent.settings import load
from mesh.errors import ConfigError

NOW_S = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("status", "retry_after", "verdict"),
    [
        (200, None, Taken("http-200")),
        (202, None, Taken("http-202")),
        (204, "120", Taken("http-204")),
        (299, None, Taken("http-299")),
        (101, None, Failed("http-101")),
        (300, None, Failed("http-300")),
        (301, None, Failed("http-301")),
        (307, "5", Failed("http-307")),
        (400, None, Refused("http-400")),
        (401, None, Refused("http-401")),
        (404, "5", Refused("http-404")),
        (408, None, Failed("http-408")),
        (410, None, Refused("http-410")),
        (415, None, Refused("http-415")),
        (422, None, Refused("http-422")),
        (425, None, Failed("http-425")),
        (429, None, Later("http-429")),
        (429, "7", Later("http-429", 7.0)),
        (429, " 7 ", Later("http-429", 7.0)),
        (429, "0", Later("http-429", 0.0)),
        (429, "-7", Later("http-429")),
        (429, "7.5", Later("http-429")),
        (429, "soon", Later("http-429")),
        (429, "", Later("http-429")),
        (429, "9" * 10, Later("http-429", 300.0)),
        (429, "9" * 400, Later("http-429")),
        (429, "Wed, 21 Oct 2015 07:28:10 GMT", Later("http-429", 10.0)),
        (429, "Wednesday, 21-Oct-15 07:28:10 GMT", Later("http-429", 10.0)),
        (429, "Wed Oct 21 07:28:10 2015", Later("http-429", 10.0)),
        (429, "Wed, 21 Oct 2015 07:27:00 GMT", Later("http-429", 0.0)),
        (429, "Wed, 21 Oct 2065 07:28:10 GMT", Later("http-429", 300.0)),
        (429, "Wed, 99 Oct 2015 07:28:10 GMT", Later("http-429")),
        (451, None, Refused("http-451")),
        (499, None, Refused("http-499")),
        (500, None, Failed("http-500")),
        (500, "7", Failed("http-500")),
        (502, None, Failed("http-502")),
        (503, None, Failed("http-503")),
        (503, "7", Later("http-503", 7.0)),
        (503, "soon", Failed("http-503")),
        (504, None, Failed("http-504")),
        (600, None, Failed("http-600")),
        (999, None, Failed("http-999")),
    ],
)
def test_each_answer_has_one_meaning(status: int, retry_after: str | None, verdict: Verdict) -> None:
    """Status and `Retry-After` decide; nothing else of an answer is looked at."""
    assert judge(status, retry_after, now_s=NOW_S, cap_s=300.0) == verdict


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_later_pauses_for_as_long_as_the_target_said() -> None:
    """Then one request goes first, and its answer frees the target."""
    pause = Pause()
    pause.later(pause.begin(), 100.0, "http-429", 7.0)
    assert (pause.wait_s(100.0), pause.wait_s(107.0)) == (7.0, 0.0)
    probe = pause.begin()
    assert pause.wait_s(107.0) is None
    assert pause.answered(probe)
    assert (pause.wait_s(107.0), pause.reason) == (0.0, "")


def test_pauses_grow_where_the_target_does_not_say() -> None:
    """One, two, four seconds, up to half a minute; any other answer begins anew."""
    pause, now, waits = Pause(), 0.0, []
    for _ in range(7):
        pause.later(pause.begin(), now, "unreachable", None, unreachable=True)
        waits.append(pause.wait_s(now))
        now += pause.wait_s(now) or 0.0
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pause.answered(pause.begin())
    pause.later(pause.begin(), now, "unreachable", None)
    assert pause.wait_s(now) == 1.0


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.999])
def test_a_target_that_asks_for_no_pause_gets_one(delay_s: float) -> None:
    """`Retry-After: 0`, or a date that is past by our clock: pauses grow, and nobody asks without end."""
    pause, now, waits = Pause(), 0.0, []
    for _ in range(4):
        pause.later(pause.begin(), now, "http-429", delay_s)
        waits.append(pause.wait_s(now))
        now += pause.wait_s(now) or 0.0
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_of_answers_that_were_under_way_the_longest_wait_counts() -> None:
    """Sixteen requests at once that are told "later" lengthen nothing but what they ask for."""
    pause = Pause()
    eras = [pause.begin() for _ in range(3)]
    pause.later(eras[0], 0.0, "http-429", None)
    pause.later(eras[1], 0.0, "http-429", None)
    assert pause.wait_s(0.0) == 1.0
    pause.later(eras[2], 0.0, "http-429", 20.0)
    assert pause.wait_s(0.0) == 20.0


def test_a_late_success_does_not_end_a_pause() -> None:
    """What began before the pause says nothing of the time after it."""
    pause = Pause()
    early, other = pause.begin(), pause.begin()
    pause.later(other, 0.0, "http-429", 9.0)
    assert not pause.answered(early)
    assert pause.wait_s(0.0) == 9.0


def test_a_probe_that_is_given_up_lets_another_begin() -> None:
    """A worker that ends in the middle leaves nobody waiting for ever."""
    pause = Pause()
    pause.later(pause.begin(), 0.0, "http-429", 1.0)
    probe = pause.begin()
    pause.dropped(probe)
    assert pause.wait_s(1.0) == 0.0


# --- where a target may be -------------------------------------------------------------------------------------------

SETTINGS = """name = "desk"
tenant = "acme"
team = "support"
team_creds_file = "team.creds"
push_hosts = "hooks.example.org, Crm.example.org:8443, [2001:db8::7]:443"
[push.contacts]
"""


@pytest.mark.parametrize(
    "options",
    [
        'url = "http://127.0.0.1:8080/events"',
        'url = "http://localhost/events"',
        'url = "http://[::1]:8080/"',
        'url = "http://127.8.9.10:8080/"',
        'url = "http://localhost/x"\nsocket = "app.sock"',
        'url = "https://hooks.example.org/x?y=z"',
        'url = "https://HOOKS.example.org:443/x"',
        'url = "https://crm.example.org:8443/"',
        'url = "https://[2001:db8::7]/"',
        'url = "http://hooks.example.org/"\nallow_http = true',
        'url = "http://localhost/"\nmode = "batch"\nbatch_events = 5',
        'url = "http://localhost/"\ntimeout_s = 3\nconcurrency = 1',
        'url = "http://localhost/"\nmode = "standard-webhooks"\nsecret_files = ["a", "b"]',
    ],
)
def test_a_target_may_be_here_or_where_it_was_allowed(options: str) -> None:
    """This machine, or a host that push_hosts names with this port."""
    (target,) = load(SETTINGS + options).settings.push
    assert target.name == "contacts"


@pytest.mark.parametrize(
    "options",
    [
        "",
        'url = "http://10.0.0.7:8080/"',
        'url = "http://169.254.169.254/latest/meta-data"',
        'url = "http://0.0.0.0:8080/"',
        'url = "http://127.1:8080/"',
        'url = "http://2130706433/"',
        'url = "http://0x7f000001/"',
        'url = "http://localhost.example.org/"',
        'url = "http://localhost@evil.example/"',
        'url = "http://user:pass@localhost/"',
        'url = "http://localhost#@evil.example/"',
        'url = "https://hooks.example.org:8443/"',
        'url = "https://crm.example.org/"',
        'url = "https://sub.hooks.example.org/"',
        'url = "https://hooks.example.org.evil.example/"',
        'url = "http://hooks.example.org/"',
        'url = "ftp://localhost/"',
        'url = "file:///etc/passwd"',
        'url = "localhost:8080"',
        'url = "http://localhost:0/"',
        'url = "http://localhost:99999/"',
        'url = "http://local\\u00adhost/"',
        'url = "http://localhost/a b"',
        'url = "https://hooks.example.org/"\nsocket = "app.sock"',
        'url = "http://localhost/"\nca_file = "ca.pem"',
        'url = "http://localhost/"\nmode = "soap"',
        'url = "http://localhost/"\nmode = "standard-webhooks"',
        'url = "http://localhost/"\nsecret_files = ["a"]',
        'url = "http://localhost/"\nbatch_events = 5',
        'url = "http://localhost/"\nconcurrency = 0',
        'url = "http://localhost/"\nconcurrency = 1.5',
        'url = "http://localhost/"\nconcurrency = true',
        'url = "http://localhost/"\nallow_http = 1',
        'url = "http://localhost/"\nfollow_redirects = true',
    ],
)
def test_any_other_target_ends_the_start(options: str) -> None:
    """Elsewhere, disguised as here, in clear, or with options that do not fit: a mistake in the settings."""
    with pytest.raises(ConfigError):
        load(SETTINGS + options)


def test_push_needs_the_credentials_of_the_team() -> None:
    """The account that an agent publishes with reads no event."""
    text = SETTINGS.replace('team_creds_file = "team.creds"\n', "") + 'url = "http://localhost/"'
    with pytest.raises(ConfigError, match="team_creds_file"):
        load(text)


def test_no_target_comes_from_the_environment() -> None:
    """A variable cannot send a subscription somewhere else."""
    with pytest.raises(ConfigError):
        load(SETTINGS + 'url = "http://localhost/"', {"MESH_AGENT_PUSH": "http://evil.example"})


def test_hosts_are_read_in_any_case() -> None:
    """White space and case do not count."""
    assert read_hosts(" A.example , b.example:1,") == {"a.example", "b.example:1"}


@pytest.mark.parametrize(
    ("address", "is_refused"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("169.254.169.254", True),
        ("::ffff:169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("0.0.0.0", True),  # noqa: S104 - refused
        ("::", True),
        ("224.0.0.1", True),
        ("ff02::1", True),
        ("255.255.255.255", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("168.63.129.16", True),
        ("::ffff:168.63.129.16", True),
        ("64:ff9b::7f00:1", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("64:ff9b::6464:64c8", True),
        ("64:ff9b::5db8:d822", False),
        ("10.1.2.3", False),
        ("192.168.1.1", False),
        ("93.184.216.34", False),
        ("2001:db8::7", False),
        ("fd00::7", False),
    ],
)
def test_no_allowed_name_may_stand_for_this_machine(address: str, *, is_refused: bool) -> None:
    """Nor for a metadata service; a private network is where services live."""
    assert refused(address) is is_refused


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "LOCALHOST"])
@pytest.mark.anyio
async def test_localhost_is_this_machine_in_any_case(host: str) -> None:
    """What the settings accept is connected to, and no name server is asked."""
    found = await Addresses(NoNames).resolve(host, 80, socket.AF_UNSPEC)
    assert [result["host"] for result in found] == ["127.0.0.1", "::1"]


class NoNames(AbstractResolver):
    """A system without a name server."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        """Nobody may ask."""
        raise AssertionError(host)

    async def close(self) -> None:
        """Nothing is open."""


def test_the_state_names_no_path() -> None:
    """A path may hold a secret."""
    options: dict[str, Any] = {"url": "https://hooks.example.org/t/s3cret"}
    (target,) = load(SETTINGS + f'url = "{options["url"]}"').settings.push
    assert target.place == "hooks.example.org:443"
