"""The keys an agent masks with: files beside it, read again when they change."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.keys import MaskingKeys, hex_key
from mesh.errors import ConfigError, NoDomainKey


def test_a_key_that_is_not_held_names_itself() -> None:
    """A missing domain or cipher key is `no-domain-key` with its name and the setting that its file belongs to."""
    keys = MaskingKeys({"d": bytes(32)}, {"billing.random": bytes(64)})
    assert (keys.domain("d"), keys.cipher("billing.random")) == (bytes(32), bytes(64))
    with pytest.raises(NoDomainKey, match=r"pseudonym domain billing\.random") as domain:
        keys.domain("billing.random")
    with pytest.raises(NoDomainKey, match="no key for the cipher d") as cipher:
        keys.cipher("d")
    assert (domain.value.details["domain"], cipher.value.details["domain"]) == ("billing.random", "d")
    assert cipher.value.expected == "d.key in ciphers_dir"


def test_the_keys_that_lack_are_named() -> None:
    """What a bundle has an agent mask with and it holds no key of is told apart, sorted."""
    keys = MaskingKeys({"d": b""}, {"c": b""})
    assert keys.lacking(["z", "d", "a"]) == ["a", "z"]
    assert keys.lacking_ciphers(["z", "c", "d"]) == ["d", "z"]


@pytest.mark.parametrize(("length", "text"), [(32, "ab" * 32), (64, "AB" * 64 + "\n")])
def test_a_key_is_hexadecimal_of_its_length(tmp_path: Path, length: int, text: str) -> None:
    """A key file of exactly its length reads, and any other is refused by name, its content unsaid."""
    path = tmp_path / "billing+support.random.key"
    path.write_text(text)
    assert len(hex_key(path, length)) == length
    path.write_text(text[2:])
    with pytest.raises(ConfigError, match="is not a key") as error:
        hex_key(path, length)
    assert error.value.expected == f"{2 * length} hexadecimal characters"
    assert text[2:10] not in str(error.value)
