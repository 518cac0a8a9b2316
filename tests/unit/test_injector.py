"""The injector as a server: TLS, limits, and files that change while it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from mesh.ca import RootCA
from mesh.control import injector as module
from mesh.control.injector import REFUSED_FILES, REVIEWED, Injector, InjectorOptions
from mesh.control.reconcile import now_ms
from mesh.errors import ConfigError
from tests.unit.test_injection import FRAGMENT_FILE, RECORDED

pytestmark = pytest.mark.anyio

REVIEW = (RECORDED / "request_create_replicaset_pod.json").read_bytes()
ROOT_CA = RootCA.create("mesh.local", now_ms=now_ms())
CA = ROOT_CA.issue_ca(now_ms=now_ms())


def write_pair(directory: Path) -> bytes:
    """A new certificate and its key; the certificate's DER."""
    certificate, key = CA.issue_tls_server(["127.0.0.1"], now_ms=now_ms())
    (directory / "tls.crt").write_bytes(certificate)
    (directory / "tls.key").write_bytes(key)
    end = b"-----END CERTIFICATE-----\n"
    return ssl.PEM_cert_to_DER_cert((certificate.partition(end)[0] + end).decode())


@pytest.fixture
def options(tmp_path: Path) -> InjectorOptions:
    """Files of its own."""
    write_pair(tmp_path)
    (tmp_path / "sidecar.yaml").write_text(FRAGMENT_FILE.read_text())
    (tmp_path / "ca.crt").write_bytes(ROOT_CA.cert_pem)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    return InjectorOptions(sidecar=tmp_path / "sidecar.yaml", cert=cert, key=key, host="127.0.0.1", port=0)


@asynccontextmanager
async def serving(injector: Injector) -> AsyncIterator[str]:
    """The URL of a running injector."""
    async with anyio.create_task_group() as group:
        port = await group.start(injector.run)
        yield f"https://127.0.0.1:{port}"
        group.cancel_scope.cancel()


def session(options: InjectorOptions) -> aiohttp.ClientSession:
    """A client that believes the CA, as the API server does, and keeps no connection."""
    context = ssl.create_default_context(cafile=str(options.cert.with_name("ca.crt")))
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=True))


async def shown(url: str, options: InjectorOptions) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(options.cert.with_name("ca.crt")))
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), ssl=context)
    try:
        return bytes(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_review_is_answered_over_tls(options: InjectorOptions) -> None:
    """As the API server asks: a POST with a query, and an AdmissionReview back."""
    before = REVIEWED.value(outcome="injected")
    async with serving(Injector(options)) as url, session(options) as client:
        async with client.get(f"{url}/readyz") as response:
            assert response.status == 200
        async with client.post(f"{url}/inject?timeout=5s", data=REVIEW) as response:
            answer = await response.json()
        assert (response.status, answer["response"]["allowed"]) == (200, True)
        assert answer["response"]["patchType"] == "JSONPatch"
    assert REVIEWED.value(outcome="injected") == before + 1


async def test_what_is_no_review_is_answered_with_a_code(
    options: InjectorOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server then refuses the pod, as `failurePolicy: Fail` says."""
    monkeypatch.setattr(module, "MAX_REVIEW_BYTES", 20_000)
    async with serving(Injector(options)) as url, session(options) as client:
        for body, status, code in ((b"{}", 400, "bad-admission-review"), (b" " * 20_001, 413, "too-large")):
            async with client.post(f"{url}/inject", data=body) as response:
                assert (response.status, (await response.json())["code"]) == (status, code)


async def test_half_of_the_loop_is_others(options: InjectorOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may post, on the loop that keeps the lead: a review is followed by a rest as long as it took."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    ticks = iter((10.0, 12.5, 20.0, 20.25))
    monkeypatch.setattr(module, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(module, "_rest", rest)
    async with serving(Injector(options)) as url, session(options) as client:
        for body in (REVIEW, b"{}"):
            async with client.post(f"{url}/inject", data=body) as response:
                await response.read()
    assert rests == [2.5, 0.25]


async def test_a_body_that_does_not_come_costs_its_time_limit(
    options: InjectorOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that stops half way holds a task for seconds, not for ever."""
    monkeypatch.setattr(module, "BODY_S", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep_forever()

    async with (
        serving(Injector(options)) as url,
        session(options) as client,
        client.post(f"{url}/inject", data=slowly()) as response,
    ):
        assert (response.status, (await response.json())["code"]) == (408, "request-timeout")


async def test_whoever_sends_much_keeps_no_pod_waiting(
    options: InjectorOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large body waits for room among the large ones; a pod of the usual size is answered beside them."""
    monkeypatch.setattr(module, "BODY_S", 60.0)
    monkeypatch.setattr(module, "LARGE_AT_ONCE", 1)
    monkeypatch.setattr(module, "SMALL_BYTES", len(REVIEW))
    injector = Injector(options)
    more = b" " * len(REVIEW)

    async def for_ever() -> AsyncIterator[bytes]:
        yield REVIEW + more
        await anyio.sleep_forever()

    async def posted(body: Any) -> int:
        async with client.post(f"{url}/inject", data=body) as response:
            return response.status

    async with serving(injector) as url, session(options) as client, asyncio.TaskGroup() as group:
        first = group.create_task(posted(for_ever()))
        with anyio.fail_after(60):
            while injector._room.value:
                await anyio.sleep(0.01)
        second = group.create_task(posted(REVIEW + more))
        with anyio.fail_after(60):
            while not injector._room.statistics().tasks_waiting:
                await anyio.sleep(0.01)
        assert await posted(REVIEW) == 200
        first.cancel()
        assert await second == 200


@pytest.mark.parametrize("late", ["cert", "key"])
async def test_a_new_certificate_is_shown_without_a_restart(options: InjectorOptions, late: str) -> None:
    """Half a pair is refused, and the old one goes on being shown, until the other half is there."""
    injector, file = Injector(options), getattr(options, late)
    before = file.read_bytes()
    async with serving(injector) as url:
        old = await shown(url, options)
        second = write_pair(options.cert.parent)
        after = file.read_bytes()
        file.write_bytes(before)
        refused = REFUSED_FILES.value()
        injector.reload()
        assert (REFUSED_FILES.value(), await shown(url, options)) == (refused + 1, old)
        file.write_bytes(after)
        injector.reload()
        assert await shown(url, options) == second != old


async def test_a_new_sidecar_is_added_from_then_on(options: InjectorOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are looked at while it runs; one that cannot be used changes nothing."""
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    injector = Injector(options)
    before = injector.fragment.digest
    async with serving(injector):
        options.sidecar.write_text(options.sidecar.read_text().replace("cpu: 50m", "cpu: 60m"))
        with anyio.fail_after(60):
            while injector.fragment.digest == before:
                await anyio.sleep(0.01)
        after, refused = injector.fragment.digest, REFUSED_FILES.value()
        options.sidecar.write_text("nothing")
        with anyio.fail_after(60):
            while REFUSED_FILES.value() == refused:
                await anyio.sleep(0.01)
        assert injector.fragment.digest == after


def test_a_start_without_its_files_says_which(options: InjectorOptions) -> None:
    """A control plane that was told to inject and cannot does not start."""
    for name in ("sidecar", "cert", "key"):
        change: Any = {name: options.cert.with_name("nowhere")}
        missing = replace(options, **change)
        with pytest.raises(ConfigError, match="cannot be used") as refused:
            Injector(missing)
        assert "--injector" in refused.value.next


async def test_an_address_that_is_taken_is_a_mistake(options: InjectorOptions) -> None:
    """Said at the start, with the option that puts it right."""
    async with serving(Injector(options)) as url:
        taken = replace(options, port=int(url.rpartition(":")[2]))
        with pytest.raises(ConfigError, match="cannot listen"):
            await Injector(taken).run()
