"""Reading a directory of policies: the edge beside the pure loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mesh.errors import ConfigError, PolicyError, PolicyErrors
from mesh.policy.documents import finding
from mesh.policy.load import MAX_FILES, MAX_TOTAL_CHARS
from mesh.policy.nodes import MAX_FILE_CHARS

SUFFIXES = (".yaml", ".yml")  # in capitals too
FIXTURE_SUFFIXES = (".json",)
MAX_FIXTURES_BYTES = 8 * 1024 * 1024  # of all fixtures together: some hundred events
_MAX_CHAR_BYTES = 4  # of UTF-8
_MAX_FILE_BYTES = MAX_FILE_CHARS * _MAX_CHAR_BYTES

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What a directory holds, each by its name from there, such as `access/readers.yaml`.

    Attributes:
        yaml: The text of the policy documents.
        fixtures: The bytes of the `.json` files: events that PolicyTests ask about.
    """

    yaml: dict[str, str]
    fixtures: dict[str, bytes]


def read_policies(path: str | Path) -> PolicyFiles:
    """The `.yaml` and `.yml` files below *path*, and the `.json` files; hidden ones are left out.

    Symbolic links are not followed into other directories. Nothing larger than the loader takes is read.

    Raises:
        ConfigError: There is no such directory.
        PolicyErrors: Too many files, or a file that is too large, unreadable or not UTF-8.
    """
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(
            f"{path} is no directory",
            expected="a directory of policies",
            got="a file" if root.exists() else "nothing there",
            next="name it with --policies, or run this beside `policies/`",
        )
    errors: list[PolicyError] = []
    yaml = _read_all(root, SUFFIXES, _text, errors)
    fixtures = _read_all(root, FIXTURE_SUFFIXES, bytes, errors, most=MAX_FIXTURES_BYTES)
    if errors:
        raise PolicyErrors(errors)
    return PolicyFiles(yaml, fixtures)


def read_directory(path: str | Path) -> dict[str, str]:
    """The text of every policy document below *path*, as `read_policies` reads it, and no fixture.

    Raises:
        PolicyErrors: As `read_policies`.
    """
    root = Path(path)
    if not root.is_dir():
        return read_policies(root).yaml
    errors: list[PolicyError] = []
    files = _read_all(root, SUFFIXES, _text, errors)
    if errors:
        raise PolicyErrors(errors)
    return files


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig")


def _read_all(
    root: Path,
    suffixes: tuple[str, ...],
    read: Callable[[bytes], _Read],
    errors: list[PolicyError],
    *,
    most: int = MAX_TOTAL_CHARS * _MAX_CHAR_BYTES,
) -> dict[str, _Read]:
    """What *read* makes of each file below *root*, by name, *most* bytes of all together; faults go to *errors*."""
    files: dict[str, _Read] = {}
    left = most
    for file in sorted(_below(root, suffixes)):
        name = file.relative_to(root).as_posix()
        if len(files) + len(errors) >= MAX_FILES:
            what = f"more than {MAX_FILES} files that end in {' or '.join(suffixes)}"
            errors.append(finding(name, 1, what, "put documents of one owner together"))
            break
        try:
            with file.open("rb") as stream:
                data = stream.read(_MAX_FILE_BYTES + 1)
            if len(data) > _MAX_FILE_BYTES:
                errors.append(finding(name, 1, f"the file has more than {MAX_FILE_CHARS} characters", "split the file"))
                continue
            left -= len(data)
            if left < 0:
                what = f"with this one the {' and '.join(suffixes)} files have more than {most} bytes"
                errors.append(finding(name, 1, what, "keep only what is needed"))
                break
            files[name] = read(data)
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            errors.append(finding(name, line, "the file is not UTF-8", "save it as UTF-8"))
        except OSError as error:
            errors.append(finding(name, 1, f"the file cannot be read: {error.strerror}", "check its permissions"))
    return files


def _below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = []
    for file in root.rglob("*"):
        parts = file.relative_to(root).parts
        if file.suffix.lower() in suffixes and file.is_file() and not any(part.startswith(".") for part in parts):
            found.append(file)
    return found
