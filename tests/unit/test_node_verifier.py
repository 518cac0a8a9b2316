"""A consumer in another language, written from the design alone, judges our events as we do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.tables import make_signatures as reference

SCRIPT = Path(__file__).parents[1] / "node" / "verify.mjs"


def judge(node: Path, events: list[dict[str, Any]], file: Path) -> list[str]:
    """What the Node verifier says to each event."""
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    done = subprocess.run([node, SCRIPT, file], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_node_accepts_every_vector(node: Path, tmp_path: Path) -> None:
    """Every event of every vector is accepted with nothing but SHA-256 and Ed25519."""
    table = json.loads((reference.HERE / "signing_vectors.json").read_text())
    events = [
        {
            **reference.BASE, "subject": event["subject"], "msgIds": [event["msg_id"]], "signature": event["header"],
            "bodyB64": reference.b64(event["body"].encode()), "may": None,
        }
        for batch in table["batches"] for event in batch["events"]
    ]  # fmt: skip
    assert judge(node, events, tmp_path / "events") == ["accept"] * sum(reference.SIZES)


def test_node_refuses_every_tampered_row(node: Path, tmp_path: Path) -> None:
    """Every row of bad_signatures.json ends at the step and with the code that it names."""
    table = json.loads((reference.HERE / "bad_signatures.json").read_text())
    rows = table["rows"]
    said = judge(node, [{**table["base"], **row["set"]} for row in rows], tmp_path / "events")
    wanted = ["accept" if row["step"] == "accept" else f"refuse {row['step']} {row['code']}" for row in rows]
    names = [row["name"] for row in rows]
    assert dict(zip(names, said, strict=True)) == dict(zip(names, wanted, strict=True))
