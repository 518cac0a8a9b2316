"""What the fields of a Classification must hold: paths that an event can have, and tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.errors import MeshError
from mesh.policy.bind import Path as At
from mesh.policy.bind import shown
from mesh.policy.check_masks import Note
from mesh.policy.model import Classification
from mesh.policy.paths import Path
from mesh.policy.texts import is_tag

_ATTRIBUTE_RE = re.compile(r"[a-z0-9]{1,20}")


def attempt(read: Callable[[str], object], text: str, at: At, note: Note) -> Any:
    """What *read* makes of *text*; None where it refuses, which is noted."""
    try:
        return read(text)
    except MeshError as error:
        note(at, f"`{shown(text)}`: {error}", error.next or error.expected)
    except ValueError as error:
        note(at, f"`{shown(text)}`: {error}", "write it in that form")
    return None


def check_fields(value: Classification, note: Note) -> None:
    """Note what is wrong with the fields of *value*."""
    for text, tags in value.spec.fields.items():
        at: At = ("spec", "fields", text)
        path = attempt(Path.parse, text, at, note)
        if path is not None:
            _path(path, at, note)
        for index, tag in enumerate(tags):
            if not is_tag(tag):
                fix = "write tokens of [a-z0-9_-] joined by dots, such as pii.contact.email; patterns stand in Views"
                note((*at, index), f"`{shown(tag)}` is not a tag", fix)


def _path(path: Path, at: At, note: Note) -> None:
    root = path.root
    if root is None or root == "data":
        return
    if root == "data_base64":
        note(at, "`data_base64` is the field `data`", "classify `data`")
    elif root == "partitionkey":
        note(at, "`partitionkey` is a pseudonym in every view", "remove this line")
    elif root in ATTRIBUTES_NEVER_MASKED:
        note(at, f"the attribute `{root}` is alike in every view, never masked", "remove this line")
    elif _ATTRIBUTE_RE.fullmatch(root) is None:
        note(at, f"no event has an attribute `{shown(root)}`", "fields of the data begin with `data.`")
    elif len(path.steps) > 1:
        note(at, f"the attribute `{root}` has nothing inside it", f"write `{root}`, or begin with `data.`")
