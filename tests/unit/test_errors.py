"""The error tree: what machines and people may rely on."""

from __future__ import annotations

import re

import pytest

from mesh import errors
from mesh.errors import Denied, InputError, MeshError, TooLarge, Unavailable, VerificationError, catalogue, markdown

CATALOGUE = catalogue()


def test_codes_are_unique() -> None:
    """One code names one class."""
    codes = [error.code for error in CATALOGUE]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize("error", CATALOGUE, ids=lambda error: error.__name__)
def test_each_class_keeps_the_form(error: type[MeshError]) -> None:
    """Each class has its own kebab-case code, its own docstring of a sentence, and an HTTP error status."""
    assert "code" in vars(error)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", error.code)
    assert "__doc__" in vars(error)
    assert (error.__doc__ or "").strip().endswith(".")
    assert 400 <= error.status <= 599


def test_the_catalogue_holds_every_class_of_the_module() -> None:
    """No class of the file is missing from the table of codes, and none stands outside the tree."""
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)}
    assert set(CATALOGUE) == classes
    assert CATALOGUE[0] is MeshError


@pytest.mark.parametrize(
    ("base", "lowest", "highest"), [(InputError, 400, 499), (Denied, 403, 403), (Unavailable, 503, 503)]
)
def test_a_branch_has_its_statuses(base: type[MeshError], lowest: int, highest: int) -> None:
    """The sender's faults are 4xx, and what is away for a while is 503."""
    assert all(lowest <= error.status <= highest for error in CATALOGUE if issubclass(error, base))


def test_only_what_may_pass_is_retryable() -> None:
    """The sender's faults and refusals are never retried as they are; what is away always is."""
    for error in CATALOGUE:
        if issubclass(error, (InputError, Denied)):
            assert not error.retryable
        if issubclass(error, Unavailable):
            assert error.retryable


def test_each_verification_step_has_its_error() -> None:
    """V1 to V9 each have a class that names the step."""
    steps = [error.step for error in CATALOGUE if issubclass(error, VerificationError) and error.step]
    assert steps == [f"V{n}" for n in range(1, 10)]


def test_as_dict_has_every_key() -> None:
    """Machines always find code, message, expected, got and next, beside the details."""
    error = TooLarge("the event has 3 bytes, limit 2", expected="at most 2 bytes", got="3 bytes", limit=2, size=3)
    assert error.as_dict() == {
        "code": "too-large",
        "message": "the event has 3 bytes, limit 2",
        "expected": "at most 2 bytes",
        "got": "3 bytes",
        "next": "",
        "limit": 2,
        "size": 3,
    }
    assert str(error) == error.message


def test_details_never_replace_what_every_error_has() -> None:
    """A detail that is called like a fixed key does not change it."""
    assert TooLarge("real", code="fake").as_dict()["code"] == "too-large"


def test_the_table_has_a_row_for_each_class() -> None:
    """The reference table is one row per class, and no docstring breaks it."""
    rows = markdown().splitlines()[2:]
    assert len(rows) == len(CATALOGUE)
    assert all(row.count("|") == 5 for row in rows)
