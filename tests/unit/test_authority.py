from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from nacl.bindings import crypto_sign_seed_keypair

from mesh.certificates import check_chain, make_csr
from mesh.control import trust
from mesh.control.reconcile import now_ms
from mesh.control.trust import Authority
from mesh.enrolment import seal_request
from mesh.errors import BadCertificate, ConfigError
from mesh.identity import Keyring, TrustStatement
from tests.conftest import ROOT

DOMAIN = "mesh.local"
SPIFFE = f"spiffe://{DOMAIN}/ns/acme/sa/crm-adapter"
NOW_MS = 1_795_300_000_000
DAY_MS = 86_400_000
OLDER = ROOT / "tests" / "tables" / "older_trust"  # written by the version whose root signed certificates itself
SEED = bytes(range(32))
PUBLIC = crypto_sign_seed_keypair(SEED)[0]


def opened(root: Path, *, now_ms: int = NOW_MS, trust_domain: str = DOMAIN) -> Authority:
    """The authority of a data directory."""
    return Authority(root / "trust", root / "admin", trust_domain=trust_domain, now_ms=now_ms)


def public_keyring(root: Path) -> Keyring:
    """Made from what everybody may read."""
    key = bytes.fromhex((root / "trust" / "trust.pub").read_text().strip())
    return Keyring([(root / "trust" / "ca.crt").read_bytes()], key, tenant="acme")


def roots(root: Path) -> list[x509.Certificate]:
    """What `trust/ca.crt` holds."""
    return x509.load_pem_x509_certificates((root / "trust" / "ca.crt").read_bytes())


def names(directory: Path) -> set[str]:
    """The files in a directory."""
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The data directory of a version without enrolment, as it would be copied."""
    (tmp_path / "trust").mkdir()
    (tmp_path / "admin").mkdir()
    for name in ("ca.crt", "ca.key", "trust.key"):
        shutil.copy(OLDER / name, tmp_path / "trust" / name)
    return tmp_path


def test_only_public_things_lie_where_everybody_reads(tmp_path: Path) -> None:
    """A first start makes everything, and `trust/` could be handed out as it is."""
    authority = opened(tmp_path)
    assert names(tmp_path / "trust") == {"ca.crt", "trust.pub", "policy.pub", "enrol.pub"}
    private = {"root.key", "root.crt", "ca.key", "ca.crt", "trust.key", "enrol.key", "policy.key", "operator.key"}
    assert names(tmp_path / "admin") == private
    for file in (tmp_path / "trust").iterdir():
        assert b"PRIVATE" not in file.read_bytes()
    for name, key in (
        ("trust", authority.trust_public),
        ("policy", authority.policy_public),
        ("enrol", authority.enrol_public),
    ):
        assert (tmp_path / "trust" / f"{name}.pub").read_text() == key.hex() + "\n"


def test_certificates_and_statements_hold_for_whoever_has_the_public_files(tmp_path: Path) -> None:
    """Chain, statement and sealed request fit the files beside each other."""
    authority = opened(tmp_path)
    keyring = public_keyring(tmp_path)
    chain = authority.ca.issue(SPIFFE, PUBLIC, now_ms=NOW_MS)
    assert keyring.add(chain).spiffe_id == SPIFFE
    sealed = authority.statement(tenant="acme", epoch=3, now_ms=NOW_MS, revoked={keyring.certificates()[0].kid: NOW_MS})
    assert keyring.apply(sealed).epoch == 3
    assert TrustStatement.open(sealed, authority.trust_public).tenant == "acme"
    csr = make_csr(SEED)
    public = bytes.fromhex((tmp_path / "trust" / "enrol.pub").read_text())
    assert authority.open_request(seal_request(csr, b"token", public)).csr == csr


def test_a_restart_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    """Nobody who trusts the mesh has to be told that it was restarted."""
    first, second = opened(tmp_path), opened(tmp_path)
    assert first.ca.kid == second.ca.kid
    assert first.roots == second.roots
    assert first.trust_public == second.trust_public
    assert first.enrol_public == second.enrol_public


def test_an_older_directory_is_carried_over(older: Path) -> None:
    """Its root is believed beside the new one, so its certificates verify; its key is deleted, the trust key moved."""
    before = x509.load_pem_x509_certificate((OLDER / "ca.crt").read_bytes())
    authority = opened(older)
    assert roots(older)[0] == before
    assert len(roots(older)) == len(authority.roots) == 2
    assert names(older / "trust") == {"ca.crt", "trust.pub", "policy.pub", "enrol.pub"}
    assert (older / "admin" / "trust.key").read_text() == (OLDER / "trust.key").read_text()
    stored = x509.load_pem_x509_certificate((OLDER / "event.crt").read_bytes()).public_bytes(Encoding.DER)
    keyring = public_keyring(older)
    assert keyring.add(stored).spiffe_id == SPIFFE
    assert keyring.add(authority.ca.issue(SPIFFE, PUBLIC, now_ms=NOW_MS)).issuer_kid == authority.ca.kid


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("writes", range(10))
def test_a_crash_while_carrying_over_loses_nothing(older: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """After any number of files written, the next start finishes: the old root and the trust key are still there."""
    with monkeypatch.context() as patch:
        _end_after(patch, writes)
        with pytest.raises(Killed):
            opened(older)
    authority = opened(older)
    assert not (older / "trust" / "ca.key").exists()
    assert (older / "admin" / "trust.key").read_text() == (OLDER / "trust.key").read_text()
    assert len(authority.roots) == 2
    check_chain(authority.ca.issue(SPIFFE, PUBLIC, now_ms=NOW_MS), authority.roots)


def _end_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Let *writes* files be written; the next one ends the process."""
    left = writes

    def limited(write: Callable[[Path, bytes], object]) -> Callable[[Path, bytes], object]:
        def one(path: Path, content: bytes) -> object:
            nonlocal left
            if not left:
                raise Killed(path.name)
            left -= 1
            return write(path, content)

        return one

    from mesh.control import datadir, hierarchy

    kept = datadir.write_private
    for module in (datadir, hierarchy):
        patch.setattr(module, "write_private", limited(kept))


def test_the_mesh_ca_is_renewed_at_half_its_life(tmp_path: Path) -> None:
    """With the root's key there; what the one before signed goes on to verify, for it carries its issuer."""
    first = opened(tmp_path)
    before, chain = first.ca.kid, first.ca.issue(SPIFFE, PUBLIC, now_ms=NOW_MS)
    half_ms = (first.ca.not_before_ms + first.ca.not_after_ms) // 2
    assert not first.renew_ca(half_ms - 1)
    assert first.renew_ca(half_ms)
    assert opened(tmp_path, now_ms=half_ms).ca.kid == first.ca.kid != before
    assert check_chain(chain, first.roots).issuer_kid == before
    assert check_chain(first.ca.issue(SPIFFE, PUBLIC, now_ms=half_ms), first.roots).issuer_kid == first.ca.kid


def test_a_start_past_half_of_the_ca_s_life_renews_it(tmp_path: Path) -> None:
    """A mesh that is started once a month is as well off as one that never stops."""
    kid = opened(tmp_path).ca.kid
    assert opened(tmp_path, now_ms=NOW_MS + 200 * DAY_MS).ca.kid != kid


def test_without_the_root_s_key_everything_goes_on_but_the_renewal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator keeps it elsewhere: said as an error when it is due, refused when it is asked for."""
    kid = opened(tmp_path).ca.kid
    away = (tmp_path / "admin" / "root.key").rename(tmp_path / "root.key")
    late_ms = NOW_MS + 200 * DAY_MS
    authority = opened(tmp_path, now_ms=late_ms)
    assert authority.ca.kid == kid
    assert "mesh_ca_not_renewed" in caplog.messages
    with pytest.raises(ConfigError, match="needs the root's key"):
        authority.renew_ca(late_ms, force=True)
    check_chain(authority.ca.issue(SPIFFE, PUBLIC, now_ms=late_ms), authority.roots)
    away.rename(tmp_path / "admin" / "root.key")
    assert authority.renew_ca(late_ms)
    assert authority.ca.kid != kid


def test_a_renewal_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    """Key and certificate of the mesh CA do not belong together: with the root's key there is another one."""
    (tmp_path / "other").mkdir()
    kid = opened(tmp_path).ca.kid
    opened(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "admin" / "ca.key", tmp_path / "admin" / "ca.key")
    authority = opened(tmp_path)
    assert authority.ca.kid != kid
    check_chain(authority.ca.issue(SPIFFE, PUBLIC, now_ms=NOW_MS), authority.roots)


def test_a_mesh_ca_that_none_of_our_roots_signed_is_not_used(tmp_path: Path) -> None:
    """Nobody would believe what it issues."""
    (tmp_path / "other").mkdir()
    opened(tmp_path)
    stranger = opened(tmp_path / "other").ca
    for name in ("ca.key", "ca.crt"):
        shutil.copy(tmp_path / "other" / "admin" / name, tmp_path / "admin" / name)
    authority = opened(tmp_path)
    check_chain(authority.ca.issue(SPIFFE, PUBLIC, now_ms=NOW_MS), authority.roots)
    with pytest.raises(BadCertificate):
        check_chain(stranger.issue(SPIFFE, PUBLIC, now_ms=NOW_MS), authority.roots)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda root: (root / "admin" / "root.crt").unlink(), "root.crt is missing"),
        (lambda root: (root / "admin" / "trust.key").write_text("00"), "is not a key"),
        (lambda root: (root / "admin" / "enrol.key").write_text("none"), "is not a key"),
        (lambda root: (root / "trust" / "ca.crt").write_text("none"), "holds no certificates"),
        (
            lambda root: [(root / "admin" / name).unlink() for name in ("ca.key", "root.key")],
            "needs the root's key",
        ),
    ],
)
def test_what_cannot_be_made_again_is_an_error(tmp_path: Path, spoil: Callable[[Path], object], match: str) -> None:
    """A new root or trust key in its place would be a mesh that nobody believes."""
    opened(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=match):
        opened(tmp_path)


def test_a_directory_of_another_trust_domain_is_refused(tmp_path: Path) -> None:
    """Its CA could give no agent its id."""
    opened(tmp_path)
    with pytest.raises(ConfigError, match="another trust domain") as refused:
        opened(tmp_path, trust_domain="other.example")
    assert refused.value.expected == DOMAIN


@pytest.mark.anyio
async def test_the_mesh_ca_is_looked_at_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mesh that never restarts has its CA renewed; a look that fails is said, and the next one comes."""
    authority = opened(tmp_path, now_ms=now_ms() - 200 * DAY_MS)
    kid, key = authority.ca.kid, tmp_path / "admin" / "root.key"
    good = key.read_bytes()
    key.write_text("damaged")
    monkeypatch.setattr(trust, "RENEW_EVERY_S", 0.01)
    async with anyio.create_task_group() as group:
        group.start_soon(trust.keep_ca, authority)
        with anyio.fail_after(60):
            while "mesh_ca_renewal_failed" not in caplog.messages:
                await anyio.sleep(0.01)
            assert authority.ca.kid == kid
            key.write_bytes(good)
            while authority.ca.kid == kid:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
