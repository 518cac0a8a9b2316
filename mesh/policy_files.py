"""Reading a directory of policies: the edge beside the pure loader."""

from __future__ import annotations

from pathlib import Path

from mesh.errors import PolicyError, PolicyErrors
from mesh.policy.documents import finding
from mesh.policy.load import MAX_FILES
from mesh.policy.nodes import MAX_FILE_CHARS

SUFFIXES = (".yaml", ".yml")
_MAX_CHAR_BYTES = 4  # of UTF-8


def read_directory(path: str | Path) -> dict[str, str]:
    """The text of every `.yaml` and `.yml` file below *path*, by its name from there; hidden ones are left out.

    Symbolic links are not followed into other directories. Nothing larger than the loader takes is read.

    Raises:
        PolicyErrors: No such directory, too many files, or a file that is too large, unreadable or not UTF-8.
    """
    root = Path(path)
    if not root.is_dir():
        raise PolicyErrors([finding(str(path), 1, "no such directory", "name the directory that holds the policies")])
    errors: list[PolicyError] = []
    files: dict[str, str] = {}
    for file in sorted(_yaml_files(root)):
        name = file.relative_to(root).as_posix()
        if len(files) + len(errors) >= MAX_FILES:
            errors.append(
                finding(name, 1, f"more than {MAX_FILES} policy files", "put documents of one owner together")
            )
            break
        try:
            with file.open("rb") as stream:
                data = stream.read(MAX_FILE_CHARS * _MAX_CHAR_BYTES + 1)
            if len(data) > MAX_FILE_CHARS * _MAX_CHAR_BYTES:
                errors.append(finding(name, 1, f"the file has more than {MAX_FILE_CHARS} characters", "split the file"))
                continue
            files[name] = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            errors.append(finding(name, line, "the file is not UTF-8", "save it as UTF-8"))
        except OSError as error:
            errors.append(finding(name, 1, f"the file cannot be read: {error.strerror}", "check its permissions"))
    if errors:
        raise PolicyErrors(errors)
    return files


def _yaml_files(root: Path) -> list[Path]:
    found = []
    for file in root.rglob("*"):
        parts = file.relative_to(root).parts
        if file.suffix in SUFFIXES and file.is_file() and not any(part.startswith(".") for part in parts):
            found.append(file)
    return found
