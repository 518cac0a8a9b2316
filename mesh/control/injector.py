"""The injector: an HTTPS listener that the API server asks about each pod that wants its agent.

    POST /inject     AdmissionReview v1 in and out; what is decided is in `mesh/kubernetes/admission.py`
    GET  /readyz     200 once the files are read: for the kubelet

Every replica of the control plane serves it, leading or not, and it needs neither NATS nor state: pods start while
both are away. Certificate, key and the sidecar's file are read again when they change; a set that cannot be used is
refused, and the last good one goes on.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from aiohttp import web

from mesh import logs
from mesh.errors import BadAdmissionReview, ConfigError, RequestTimeout, TooLarge
from mesh.kubernetes.admission import judge, read_review
from mesh.kubernetes.fragment import Fragment, read_fragment
from mesh.telemetry import counter

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from mesh.kubernetes.admission import Verdict

PATH = "/inject"
PORT = 9443
MAX_REVIEW_BYTES = 4 * 1024 * 1024  # the API server takes 3 MiB from whoever creates a pod
SMALL_BYTES = 64 * 1024  # nearly every pod's; these wait for no body that comes slowly
LARGE_AT_ONCE = 8  # bodies beyond that, 32 MiB: anybody in the cluster can send us one
BODY_S = 5.0  # for a whole body and its turn; the API server waits no longer for an answer
CHECK_S = 2.0  # how often the files are looked at; the kubelet itself takes a minute or two to replace them

REVIEWED = counter(
    "mesh.control.pods_reviewed", unit="{pod}", watch="outcome refused: pods that want the mesh and do not start"
)
REFUSED_FILES = counter(
    "mesh.control.injector_files_refused", unit="{reload}", watch="any: certificate or sidecar file cannot be used"
)

log = logs.get("control")


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectorOptions:
    """Where it listens, and its files.

    Attributes:
        sidecar: The file that says what is added: see `fragment.py`.
        image: Of the sidecar; empty: the file's.
        cert, key: PEM: the certificate for the Service's name, then its issuers; and its key.
        host, port: Of the listener; port 0 takes any free one.
    """

    sidecar: Path
    cert: Path
    key: Path
    image: str = ""
    host: str = "127.0.0.1"  # in a pod its own: the API server comes from outside; a NetworkPolicy says who else may
    port: int = PORT


class Injector:
    """Answers admission reviews.

    Args:
        options: See `InjectorOptions`.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(self, options: InjectorOptions) -> None:
        self._options = options
        self._seen = self._stamps()
        self._fragment = self._read_fragment()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._load(self._context)
        self._room = anyio.Semaphore(LARGE_AT_ONCE)
        self._turn = anyio.Lock()

    @property
    def fragment(self) -> Fragment:
        """What pods get now."""
        return self._fragment

    async def run(self, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; the status is the port.

        Raises:
            ConfigError: The address is taken, or none of ours.
        """
        app = web.Application()
        app.add_routes([web.post(PATH, self._review), web.get("/readyz", _ready)])
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=BODY_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._options.host, self._options.port, ssl_context=self._context)
            try:
                await site.start()
            except OSError as error:
                raise ConfigError(
                    f"the injector cannot listen on {self._options.host}:{self._options.port}",
                    expected="a free address of this machine",
                    got=error.strerror or type(error).__name__,
                    next="--injector-host, --injector-port",
                ) from error
            port: int = runner.addresses[0][1]
            REFUSED_FILES.at()  # from 0: the rise from nothing to 1 is none to Prometheus
            log.info("injector_listens", port=port, sidecar=self._fragment.digest)
            task_status.started(port)
            await self._follow_files()
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    # --- one review --------------------------------------------------------------------------------------------------

    async def _review(self, request: web.Request) -> web.Response:
        try:
            with _within(BODY_S):
                body = await _read(request, SMALL_BYTES)
                async with self._room if len(body) > SMALL_BYTES else nullcontext():
                    body += await _read(request, MAX_REVIEW_BYTES - len(body))
                    verdict = await self._judge(_bounded(body))
        except (BadAdmissionReview, TooLarge, RequestTimeout) as error:  # the API server then refuses the pod
            REVIEWED.add(outcome="invalid")
            log.warning("review_refused", code=error.code, error=error.message, got=error.got)
            return web.json_response(error.as_dict(), status=error.status)
        REVIEWED.add(outcome=verdict.outcome)
        if verdict.refusal is not None:
            log.warning("pod_refused", code=verdict.refusal.code, error=verdict.refusal.message)
        return web.json_response(verdict.review())

    async def _judge(self, body: bytes) -> Verdict:
        """One after the other, each with a rest as long as it took: half of the loop stays the lead's."""
        async with self._turn:
            began = perf_counter()
            try:
                return judge(read_review(body), self._fragment)
            finally:
                await _rest(perf_counter() - began)

    # --- files -------------------------------------------------------------------------------------------------------

    async def _follow_files(self) -> None:
        while True:
            await anyio.sleep(CHECK_S)
            await anyio.to_thread.run_sync(self.reload)

    def reload(self) -> None:
        """Take up files that changed. Certificate and key may be replaced one after the other: then the next look."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        try:
            fragment = self._read_fragment()
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a pair that does not match would spoil the one in use
            self._load(self._context)
        except ConfigError as error:
            REFUSED_FILES.add()
            log.error("injector_files_refused", code=error.code, error=error.message, got=error.got)
        else:
            self._fragment = fragment
            log.info("injector_files_read", sidecar=fragment.digest)
        self._seen = stamps

    def _stamps(self) -> list[tuple[int, int, int]]:
        """What tells a file from the one that took its place."""
        stamps = []
        for path in (self._options.sidecar, self._options.cert, self._options.key):
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0, 0))  # between two files; or said when it is read
            else:
                stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return stamps

    def _read_fragment(self) -> Fragment:
        path = self._options.sidecar
        try:
            return read_fragment(path.read_text(encoding="utf-8"), self._options.image)
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error, "the sidecar's YAML") from error

    def _load(self, context: ssl.SSLContext) -> None:
        cert, key = self._options.cert, self._options.key
        try:
            context.load_cert_chain(cert, key, password=_no_passphrase)
        except OSError as error:  # ssl.SSLError is one
            raise _unreadable(cert, error, f"a chain in PEM, and its key in {key.name}") from error


async def _rest(seconds: float) -> None:
    await anyio.sleep(seconds)


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise RequestTimeout("the review came too late", expected=f"body and answer within {seconds:.0f} s") from error


async def _read(request: web.Request, most: int) -> bytes:
    """The body, or of a larger one more than *most*, and no more than that."""
    content = bytearray()
    while len(content) <= most and (more := await request.content.read(most + 1 - len(content))):
        content += more
    return bytes(content)


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_REVIEW_BYTES:
        raise TooLarge(
            "the review is too large", expected=f"at most {MAX_REVIEW_BYTES} bytes", next="make the pod smaller"
        )
    return body


async def _ready(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _no_passphrase() -> str:
    raise ConfigError(
        "the injector's key has a passphrase", expected="a key without one", next="have it issued without a passphrase"
    )


def _unreadable(path: Path, error: OSError | UnicodeDecodeError, expected: str) -> ConfigError:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    return ConfigError(
        f"{path} cannot be used by the injector",
        expected=expected,
        got=str(reason).lower().replace("_", " "),
        next="--injector-sidecar, --injector-cert, --injector-key",
    )
