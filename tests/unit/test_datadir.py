from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mesh.control.datadir import DataDirectory, hex_key, write_if_changed, write_private
from mesh.control.trust import CERTIFICATE_LIFETIME_S, Authority
from mesh.errors import ConfigError
from mesh.identity import Keyring, check_certificate

NOW_MS = 1_795_300_000_000
SPIFFE = "spiffe://mesh.local/ns/acme/sa/crm-adapter"


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, directories are 0700 and files 0600."""
    before = os.umask(0)
    try:
        data = DataDirectory.open(tmp_path / "deep" / "data")
        data.token("desk")
        data.dedupe_key("desk")
        data.domain_key("acme", "person")
    finally:
        os.umask(before)
    found = [path for path in [data.root, *data.root.rglob("*")] if mode(path) != (0o700 if path.is_dir() else 0o600)]
    assert found == []


def test_a_second_open_finds_the_same_secrets(tmp_path: Path) -> None:
    """A restart goes on with its keys."""
    first, second = DataDirectory.open(tmp_path / "d"), DataDirectory.open(tmp_path / "d")
    assert first.dedupe_key("desk") == second.dedupe_key("desk")
    assert first.token("desk").read_text() == second.token("desk").read_text()
    assert first.dedupe_key("desk") != first.dedupe_key("lake")
    assert len(first.token("desk").read_text().strip()) == 43


def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path) -> None:
    """A new key would quietly make new tokens and message ids."""
    path = tmp_path / "k.key"
    write_private(path, b"not a key")
    with pytest.raises(ConfigError, match="is not a key"):
        hex_key(path)
    assert path.read_bytes() == b"not a key"


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    """Writing the same again does not wake who watches the file."""
    path = tmp_path / "f"
    assert write_if_changed(path, b"a")
    assert not write_if_changed(path, b"a")
    assert write_if_changed(path, b"b")


def test_a_file_cannot_be_the_data_directory(tmp_path: Path) -> None:
    """Misuse is a clear error."""
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="cannot be the data directory"):
        DataDirectory.open(tmp_path / "f")


def test_an_identity_outlives_a_restart(tmp_path: Path) -> None:
    """The same authority, key and certificate come back from the same files."""
    make = [Authority(tmp_path / "trust", trust_domain="mesh.local", now_ms=NOW_MS) for _ in range(2)]
    first, second = (authority.signer(tmp_path / "agent", SPIFFE, now_ms=NOW_MS) for authority in make)
    assert (first.kid, first.certificate) == (second.kid, second.certificate)
    assert make[0].trust_public == make[1].trust_public
    assert str(check_certificate(first.certificate, [make[0].ca.cert_pem]).spiffe_id) == SPIFFE


def test_a_renewed_certificate_has_a_new_key(tmp_path: Path) -> None:
    """Past half its life, or for another name, key and certificate are replaced together: the backlog keeps its own."""
    authority = Authority(tmp_path / "trust", trust_domain="mesh.local", now_ms=NOW_MS)
    first = authority.signer(tmp_path / "agent", SPIFFE, now_ms=NOW_MS)
    later_ms = NOW_MS + CERTIFICATE_LIFETIME_S * 500 + 120_000
    kids = {first.kid, authority.signer(tmp_path / "agent", SPIFFE, now_ms=later_ms).kid}
    kids.add(authority.signer(tmp_path / "agent", SPIFFE + "2", now_ms=later_ms).kid)
    assert len(kids) == 3


def test_statements_open_with_the_published_key(tmp_path: Path) -> None:
    """A keyring made from the public files accepts what the authority signs, and no older epoch."""
    authority = Authority(tmp_path, trust_domain="mesh.local", now_ms=NOW_MS)
    keyring = Keyring([(tmp_path / "ca.crt").read_bytes()], bytes.fromhex((tmp_path / "trust.pub").read_text().strip()))
    assert keyring.apply(authority.statement(epoch=3, now_ms=NOW_MS)).epoch == 3
    keyring.check_fresh(NOW_MS)
