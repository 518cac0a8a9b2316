"""The policies that `mesh up` was given: for a first start. What is in force already stays, whatever they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.control.change import checked
from mesh.control.datadir import DataDirectory
from mesh.errors import PolicyError
from mesh.policy.bundle import Bundle, compile_bundles, ordered
from mesh.policy.documents import PolicySet
from mesh.policy_files import read_policies

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Given:
    """A directory of policies as it was read.

    Attributes:
        yaml, fixtures: The files, by name.
        policies: Loaded and tested; empty where they do not hold and nobody needs them.
        fault: Why they do not hold.
        author: Who gave them.
    """

    yaml: Mapping[str, str] = field(default_factory=dict)
    fixtures: Mapping[str, bytes] = field(default_factory=dict)
    policies: PolicySet = field(default_factory=lambda: PolicySet(()))
    fault: PolicyError | None = None
    author: str = "mesh up"

    @property
    def tenants(self) -> tuple[str, ...]:
        """Whose policies they are."""
        return self.policies.tenants

    def bundles(self, site: str, trust_domain: str) -> dict[str, Bundle]:
        """What they would be as first revisions."""
        return compile_bundles(self.policies, site=site, trust_domain=trust_domain, created_ms=0)

    def differ_from(self, bundle: Bundle) -> bool:
        """Whether they are other policies than those in force for that tenant; not where none were given."""
        return bool(self.yaml) and ordered(d.value for d in self.policies.of(bundle.tenant)) != bundle.policies


def read_given(data: Path, policies: Path, author: str = "mesh up") -> Given:
    """Read, load and test a directory.

    Args:
        data: The data directory. Where a mesh has policies in force, a fault in *policies* does not keep it down.
        policies: The directory.
        author: Who gave them.

    Raises:
        PolicyError: They do not load or their tests fail, and this is a first start.
    """
    try:
        files = read_policies(policies)
        return Given(files.yaml, files.fixtures, checked(files.yaml, files.fixtures, None), author=author)
    except PolicyError as error:
        if not DataDirectory(data).bundled:
            raise
        return Given(fault=error, author=author)
