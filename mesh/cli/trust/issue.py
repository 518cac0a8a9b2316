"""`mesh trust issue`: a key in files for an agent that is not to make its own, and its certificate.

The key is made here and goes nowhere but into its file; the control plane sees a request for a certificate.
Exit codes: 0 done; 1 no (there is no such agent, it is barred, nobody answers); 2 misuse, files that are there already.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mesh.anchors import open_keyring
from mesh.certificates import make_csr
from mesh.cli.author import author
from mesh.cli.events import ContextOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import command, console, print_json
from mesh.cli.policy.options import JsonOption, PolicyCommand
from mesh.cli.policy.request import ask
from mesh.cli.times import shown
from mesh.cli.trust.changes import ReasonOption
from mesh.cli.trust.keys import NOUN
from mesh.control.datadir import DataDirectory, private_directory, write_private
from mesh.control.trust_listing import chain_of
from mesh.control.trust_requests import MAX_HOURS
from mesh.errors import BadCertificate, ConfigError
from mesh.identity import Signer, seed_to_pem

if TYPE_CHECKING:
    from mesh.keys import Certificate

KEY_FILE, CERTIFICATE_FILE = "event.key", "event.crt"
SEED_BYTES = 32
DAY_H = 24


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        "issue",
        cls=PolicyCommand,
        epilog="Examples:  mesh trust issue crm-adapter --out keys/   |   mesh trust issue crm-adapter --out keys/"
        " --hours 168 --force",
    )(issue)


@command
async def issue(
    agent: Annotated[str, typer.Argument(help="Whose key it is.", metavar="AGENT")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Directory for event.key and event.crt; made where missing.")],
    hours: Annotated[int, typer.Option("--hours", help=f"How long it is good: 1 to {MAX_HOURS}.")] = DAY_H,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that are there.")] = False,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Make an event key in files for an agent, and have the control plane certify it.

    For an agent with `event_key_file` and `event_cert_file`: it enrols nothing, and reads the files again when they
    change. Renew them before they end: the agent does not. Without those settings it makes its own keys.
    """
    seed = secrets.token_bytes(SEED_BYTES)
    csr = make_csr(seed)
    async with operator_connection(context, tenant=tenant) as (found, connection):
        _make_room(out, force=force)
        body = {"agent": agent, "csr": b64encode(csr).decode(), "hours": hours}
        said = await ask(connection, "issue", {**body, "author": author(), "reason": reason}, noun=NOUN)
    certificate = checked(said, seed, DataDirectory(found.data).trust)
    write(out, seed, certificate)
    _print(certificate, out.resolve(), agent, as_json=json_)


def checked(said: dict[str, Any], seed: bytes, trust: Path) -> Certificate:
    """The certificate that was answered, of one of our own roots and for our key: a broker carried it.

    Args:
        said: The answer.
        seed: Of the key that was to be certified.
        trust: The directory of what everybody believes.

    Raises:
        IdentityError: It does not hold up.
        ConfigError: The roots cannot be read.
    """
    try:
        chain = b64decode(str(said.get("chain", "")), validate=True)
    except Base64Error as error:
        raise BadCertificate("the answer holds no chain", next="is the control plane of this version?") from error
    certificate = open_keyring(trust).add(chain)
    Signer.from_seed(seed, chain)
    return certificate


def write(out: Path, seed: bytes, certificate: Certificate) -> None:
    """Put key and certificate into *out*, each whole and 0600, as an agent reads them.

    Raises:
        ConfigError: They cannot be written; the certificate is in the trust store.
    """
    try:
        write_private(out / KEY_FILE, seed_to_pem(seed))
        write_private(out / CERTIFICATE_FILE, "".join(chain_of(certificate)).encode())
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror}",
            expected="room and the right to write it",
            next=f"`mesh trust revoke {certificate.kid}`, then issue another",
        ) from error


def _make_room(out: Path, *, force: bool) -> None:
    """The directory, before anything is issued that would have no place."""
    held = [name for name in (KEY_FILE, CERTIFICATE_FILE) if (out / name).exists() or (out / name).is_symlink()]
    if held and not force:
        raise ConfigError(
            f"{out} holds {' and '.join(held)} already",
            expected="a directory without them",
            next="name another, or replace them with --force: the key before stays good until it ends or is revoked",
        )
    try:
        private_directory(out)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made: {error.strerror}", expected="a directory we may write", next="name another"
        ) from error


def _print(certificate: Certificate, out: Path, agent: str, *, as_json: bool) -> None:
    settings = {"event_key_file": str(out / KEY_FILE), "event_cert_file": str(out / CERTIFICATE_FILE)}
    if as_json:
        told = {"agent": agent, "kid": certificate.kid, "spiffe_id": str(certificate.spiffe_id)}
        times = {"not_before_ms": certificate.not_before_ms, "not_after_ms": certificate.not_after_ms}
        print_json({**told, **times, "settings": settings})
        return
    console.print(f"[bold]{certificate.kid}[/] is {escape(certificate.spiffe_id)}", soft_wrap=True)
    console.print(f"good until [bold]{shown(certificate.not_after_ms)}[/]; renewing it before is up to you\n")
    console.print(escape("# agent.toml, above its first [section]"), style="dim")
    for name, path in settings.items():
        console.print(escape(f"{name} = {json.dumps(path, ensure_ascii=False)}"), soft_wrap=True)
