"""A suite's result as JUnit XML, which CI systems read: a test suite a PolicyTest, a test case a case or invariant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from xml.sax.saxutils import quoteattr

from mesh.policy.suite import Outcome, SuiteResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


def junit(result: SuiteResult) -> str:
    """*result* as one XML document. No times are told: nothing here takes long."""
    total, failed = len(result.outcomes), len(result.failures)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append(f'<testsuites name="mesh policy test" tests="{total}" failures="{failed}" errors="0">')
    for (tenant, document), group in groupby(result.outcomes, key=lambda o: (o.tenant, o.document)):
        lines.extend(_suite(f"{tenant}/{document}", list(group)))
    lines.append("</testsuites>")
    return "\n".join(lines) + "\n"


def _suite(name: str, outcomes: list[Outcome]) -> Iterable[str]:
    failed = sum(not outcome.passed for outcome in outcomes)
    yield f'  <testsuite name={_quoted(name)} tests="{len(outcomes)}" failures="{failed}" errors="0" skipped="0">'
    for outcome in outcomes:
        where = f'file={_quoted(outcome.file)} line="{outcome.line}"'
        head = f"    <testcase classname={_quoted(name)} name={_quoted(outcome.name)} {where}"
        if outcome.passed:
            yield f"{head}/>"
            continue
        yield f"{head}>"
        for mismatch in outcome.mismatches:
            told = f"{mismatch.path}: expected {mismatch.expected}, got {mismatch.got}"
            text = _text(f"{outcome.file}:{outcome.line}: {told}")
            yield f'      <failure type="{outcome.kind}" message={_quoted(told)}>{text}</failure>'
        yield "    </testcase>"
    yield "  </testsuite>"


def _quoted(text: str) -> str:
    return quoteattr(_NOT_XML.sub("?", text), {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"})


def _text(text: str) -> str:
    return _NOT_XML.sub("?", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
