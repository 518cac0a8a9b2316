"""The NATS keys of a control plane as files: made once, found again, replaced."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mesh.control.nkeys import NkeyFiles
from mesh.errors import IdentityError


def test_a_key_is_made_once_and_found_again(tmp_path: Path) -> None:
    """`get` makes it, readable by its owner alone; `find` only looks."""
    keys = NkeyFiles(tmp_path)
    assert keys.find("user", "acme/desk") is None
    assert list(tmp_path.iterdir()) == []
    made = keys.get("user", "acme/desk")
    assert made.public == keys.get("user", "acme/desk").public
    found = NkeyFiles(tmp_path).find("user", "acme/desk")
    assert found is not None
    assert found.public == made.public
    (file,) = tmp_path.rglob("*.nk")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_renewed_key_is_another_one(tmp_path: Path) -> None:
    """It takes the place of the old one; keys of other kinds and names stay."""
    keys = NkeyFiles(tmp_path)
    old, account, other = (
        keys.get("user", "acme/desk"),
        keys.get("account", "acme/desk"),
        keys.get("user", "acme/lake"),
    )
    new = keys.renew("user", "acme/desk")
    assert new.public != old.public
    assert keys.get("user", "acme/desk").public == new.public
    assert keys.get("account", "acme/desk").public == account.public
    assert keys.get("user", "acme/lake").public == other.public


def test_accounts_are_known_by_name_and_by_key(tmp_path: Path) -> None:
    """Of one tenant by workload; of all by public key, the tenants' own and the system's too. Users are none."""
    keys = NkeyFiles(tmp_path)
    made = {
        name: keys.get("account", name).public for name in ("system", "acme", "acme/team-crm", "acme/desk", "b/desk")
    }
    keys.get("user", "acme/control")
    keys.get("operator", "operator")
    assert keys.accounts("acme") == ["desk", "team-crm"]
    assert keys.names() == {public: name for name, public in made.items()}


def test_a_file_that_holds_no_seed_is_an_error(tmp_path: Path) -> None:
    """And not a new key: what was signed with the old one would be lost without a word."""
    keys = NkeyFiles(tmp_path)
    keys.get("account", "acme")
    (file,) = tmp_path.rglob("*.nk")
    file.write_text("SA\n")
    for ask in (keys.get, keys.find):
        with pytest.raises(IdentityError):
            ask("account", "acme")
    with pytest.raises(IdentityError):
        keys.names()
    assert file.read_text() == "SA\n"
