"""The policies `mesh up` was given: needed at a first start, compared with what is in force at every other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.control.datadir import DataDirectory
from mesh.control.given import read_given
from mesh.errors import PolicyErrors, PolicyTestsFailed
from tests.unit.policy_world import BASE, bundle

FAILING = """\
apiVersion: mesh/v1
kind: PolicyTest
metadata: {name: t, tenant: acme, owner: security}
spec: {invariants: [{only: {teams: [support], subscribe: ["crm.>"]}}]}
"""


def write(directory: Path, files: dict[str, str]) -> Path:
    """A directory of policies."""
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def test_the_same_policies_do_not_differ(tmp_path: Path) -> None:
    """Neither does a comment make a difference; a right does."""
    same = write(tmp_path / "same", {name: "# a comment\n" + text for name, text in BASE.items()})
    other = write(
        tmp_path / "other",
        BASE
        | {
            "access.yaml": BASE["access.yaml"].replace("view: masked", "view: narrow"),
            "v.yaml": BASE["views.yaml"].split("---\n")[1].replace("masked", "narrow"),
        },
    )
    assert not read_given(tmp_path, same).differ_from(bundle())
    assert read_given(tmp_path, other).differ_from(bundle())


@pytest.mark.parametrize(
    ("files", "error"),
    [({"a.yaml": "kind: Nonsense\n"}, PolicyErrors), (BASE | {"t.yaml": FAILING}, PolicyTestsFailed)],
)
def test_a_fault_stops_a_first_start_alone(tmp_path: Path, files: dict[str, str], error: type[Exception]) -> None:
    """Where policies are in force, a directory that does not hold keeps no mesh down."""
    policies = write(tmp_path / "policies", files)
    data = DataDirectory(tmp_path / "data")
    with pytest.raises(error):
        read_given(data.root, policies)
    data.bundle("acme").parent.mkdir(parents=True)
    data.bundle("acme").write_bytes(b"")
    given = read_given(data.root, policies)
    assert isinstance(given.fault, error)
    assert given.tenants == ()
