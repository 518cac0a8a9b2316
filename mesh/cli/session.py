"""What the operator's commands have in common: the context, the control plane's connection, the policies in force."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from mesh.client import open_keyring
from mesh.context import Context
from mesh.control.datadir import DataDirectory
from mesh.errors import ConfigError, NoBundle, VerificationError
from mesh.jetstream.connection import Connection
from mesh.signing import Verifier
from mesh.watch import BundleWatch, TrustWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.policy.compile import Plans
    from mesh.signing import Received, Verified

CONNECT_TIMEOUT_S = 3.0  # somebody waits at a terminal; a server that restarts is back within one


@dataclass(frozen=True, slots=True)
class Session:
    """An operator at work in one tenant."""

    context: Context
    connection: Connection
    plans: Plans
    trust: TrustWatch
    verifier: Verifier

    async def verify(self, received: Received) -> Verified:
        """V1 to V9, fetching the certificate where it is not here yet.

        Raises:
            VerificationError: The step that failed.
        """
        try:
            return self.verifier.verify(received)
        except VerificationError as error:
            if not error.retryable:
                raise
        await self.trust.certificate((received.signature or "").split(".")[1])
        return self.verifier.verify(received)


@asynccontextmanager
async def operator_session(
    path: str | None, *, tenant: str | None = None, team: str | None = None
) -> AsyncIterator[Session]:
    """Connect with the control plane's credentials from the context's data directory.

    Raises:
        ConfigError: No such mesh, or its administration is not ours to read.
        Disconnected: The mesh does not run.
    """
    context = Context.load(path, tenant=tenant, team=team)
    file = DataDirectory(context.data).admin_creds(context.tenant, sorted(context.mesh.tenants))
    try:
        creds = await anyio.Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}",
            expected="the control plane's credentials",
            next="run this where the mesh runs, as the user who started it",
        ) from error
    connection = await Connection.open(
        context.mesh.nats_url, name="operator", creds=creds, connect_timeout_s=CONNECT_TIMEOUT_S
    )
    try:
        bundle, trust = BundleWatch(connection), TrustWatch(connection, open_keyring(context.data / "trust"))
        await trust.refresh()
        await bundle.refresh()
        if bundle.plans is None:
            raise NoBundle("no policy bundle is in force", expected="one from the control plane", next="run `mesh up`")
        plans = bundle.plans
        verifier = Verifier(trust.keyring, plans.may_publish)
        yield Session(context, connection, plans, trust, verifier)
    finally:
        await connection.close()
