"""Which test stands for which row: the threat model, the findings about NATS, and what else was tried.

`python -m tests.attacks.table` writes the table into the README beside it; a test compares both, and sees that every
row has a test and every test a row.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- table -->", "<!-- end of table -->"

THREATS = {
    "Forged event by another agent": (
        "events:an_event_forged_by_another_agent events:a_source_that_is_not_the_publishers"
    ),
    "Tamper by broker or admin": "events:tampering_with_what_was_signed",
    "Cross-subject and cross-tenant replay": (
        "events:the_same_event_in_another_place events:the_same_event_in_another_tenant"
    ),
    "Same-subject replay inside and outside the window": (
        "events:a_replay_within_the_window events:a_replay_after_the_window writing:reinjection_by_a_pull"
    ),
    "Signature stripping, downgrade": "events:a_stripped_signature masks:a_copy_that_claims_another_policy",
    "Key theft": "trust:a_stolen_key trust:publishing_while_the_key_is_revoked trust:a_stolen_mesh_ca",
    "Rogue or duplicate CA, SAN tricks": (
        "trust:certificates_of_ones_own trust:certificates_for_something_else enrolment:names_in_a_request"
    ),
    "Small-order key": "enrolment:a_weak_key trust:a_key_of_small_order_in_the_store",
    "Nkey oracle": "accounts:the_nonce_oracle transport:a_server_between",
    "Trust freeze and rollback": (
        "trust:bringing_an_old_statement_back trust:holding_statements_back trust:a_forged_statement"
    ),
    "Merkle tricks": "events:tricks_with_the_tree",
    "Masked-field recovery from digests": "masks:guessing_a_masked_field_from_hashes",
    "Masker lies": (
        "masks:a_copy_that_claims_another_view masks:a_copy_that_was_made_for_another masks:a_copy_from_before_a_mask"
    ),
    "Gap and suppression by the broker": (
        "broker:suppressing_an_event suppression:taking_an_event_away suppression:moving_an_event"
        " suppression:bringing_in_an_event suppression:storing_an_event_again"
    ),
    "Reply confused deputy, inbox snooping": (
        "writing:a_reply_that_writes_policy writing:a_reply_that_moves_another_consumer reading:listening_to_inboxes"
    ),
    "Malformed frames, poison pills": "frames:poison_pills frames:a_reply_that_is_not_text",
    "Reserved header abuse": (
        "frames:a_status_that_an_application_sends frames:a_copied_stream_source"
        " doors:headers_that_only_the_mesh_writes"
    ),
    "Oversize header and payload": "writing:oversized_messages",
    "Subject injection": "doors:injecting_a_subject events:literal_wildcards_in_a_subject",
    "Ciphertext swap, re-sign": "masks:moving_a_ciphertext",
    "Incomplete erasure": "masks:erasing_an_event",
    "Parser denial of service": "frames:bodies_that_parsers_choke_on doors:bodies_beyond_every_limit",
    "Loopback abuse": (
        "doors:calling_without_the_token doors:calling_from_a_page doors:what_the_probes_tell"
        " doors:a_request_that_never_ends doors:secrets_in_files"
    ),
    "Clock skew": "events:a_clock_that_is_wrong",
}  # the threat model of the security research

FINDINGS = {
    "1. Reply subjects are never checked": "writing:a_reply_that_writes_policy",
    "2. `*` in a grant matches a literal `>`": (
        "reading:widening_the_filter_of_the_own_durable reading:direct_get_of_an_event"
    ),
    "3. An ack grant is a read grant": "reading:next_by_an_ack reading:acking_for_another_team",
    "4. Acks collide across leaf-connected domains": (
        "broker:attaching_a_server reading:another_tenants_stream_of_the_same_name"
    ),
    "5. Schedules and delete markers turn rollups on": (
        "writing:rollup_wipe writing:scheduled_messages writing:ttl_abuse"
    ),
    "6. Deduplication is per stream": "writing:squatting_a_message_id",
    "7. A reload with an auth callout drops everybody": "broker:a_reload",
    "8. nats-py closes for good on a revoked user": "broker:stolen_nats_credentials",
    "9. What an ack promises": "broker:killing_the_server",
    "10. A timeout leaves a publish ambiguous": "writing:an_ambiguous_publish",
}  # about nats-server 2.15 and nats-py 2.16

OTHERS = {
    "Another team's events": (
        "reading:pulling_another_teams_durable reading:pulling_from_another_stream"
        " reading:creating_a_consumer reading:the_own_durable_hands_out_the_own_view"
        " reading:message_get_of_an_event reading:mirroring_the_stream"
        " sidelines:pulling_another_teams_slot"
    ),
    "What comes again to another team": (
        "sidelines:pulling_another_teams_replay sidelines:pulling_another_teams_redrive"
        " sidelines:a_sideline_in_another_stream sidelines:what_comes_again_is_the_teams_own"
    ),
    "Another team's other data": (
        "reading:keys_that_nobody_was_given reading:reading_another_workloads_report"
        " reading:reading_audit_and_dead_letters reading:listening_to_the_control_plane"
    ),
    "Writing what is another's": (
        "writing:publishing_outside_the_grant writing:publishing_another_agents_types"
        " writing:writing_to_the_buckets writing:writing_in_anothers_name writing:forged_notices"
    ),
    "The streams themselves": "writing:an_atomic_batch writing:deleting_and_purging accounts:streams_of_ones_own",
    "Two readings of one event": "frames:two_members_of_one_name",
    "Enrolment": (
        "enrolment:another_agents_token enrolment:another_agents_subject enrolment:a_replayed_request"
        " enrolment:a_request_that_the_broker_changes enrolment:an_answer_that_the_broker_changes"
        " enrolment:keys_of_other_kinds enrolment:a_key_that_one_does_not_have"
        " enrolment:a_key_that_somebody_else_enrolled enrolment:a_revoked_key enrolment:asking_too_often"
        " enrolment:a_barred_workload enrolment:keeping_an_agent_from_its_certificate"
    ),
    "Accounts": (
        "accounts:connecting_without_credentials accounts:a_jwt_without_its_key"
        " accounts:a_jwt_with_more_rights accounts:a_user_signed_by_oneself"
        " accounts:an_account_of_another_operator accounts:asking_the_system_account"
        " accounts:asking_the_control_plane accounts:imports_that_nobody_exports"
        " accounts:a_workload_that_policies_no_longer_know broker:a_user_that_nobody_made"
        " accounts:filling_the_servers_memory"
    ),
    "Copies kept by the broker": "broker:tapping_a_stream",
    "Requests by the broker": "broker:asking_in_an_operators_name",
    "Policies from the broker": (
        "bundle_attacks:it_is_refused_loudly_and_the_good_bundle_stays"
        " bundle_attacks:with_nothing_else_everything_is_denied"
        " bundle_attacks:an_older_bundle_is_refused_after_a_restart_too"
        " bundle_attacks:a_rollback_is_a_new_revision"
    ),
    "The wire and the disk": (
        "transport:credentials_without_a_certificate transport:a_certificate_without_credentials"
        " transport:a_certificate_of_another_ca transport:an_event_certificate_for_tls transport:an_older_tls"
        " transport:the_disk_of_the_server"
    ),
}


def rows() -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Where a row is from, what it is called, and its tests as file and function."""
    for source, named in (("threat", THREATS), ("NATS", FINDINGS), ("tried", OTHERS)):
        for name, tests in named.items():
            pairs = [test.partition(":") for test in tests.split()]
            yield source, name, [(f"test_{file}.py", f"test_{test}") for file, _, test in pairs]


def tests() -> dict[tuple[str, str], str]:
    """Every test here, as file and function, with its docstring."""
    found = {}
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[file.name, node.name] = ast.get_docstring(node) or ""
    return found


def written() -> str:
    """The table for people, in Markdown."""
    lines = ["| from | what is tried | test |", "|---|---|---|"]
    for source, name, pairs in rows():
        cells = [f"`{file.removesuffix('.py')}::{test.removeprefix('test_')}`" for file, test in pairs]
        lines.append(f"| {source} | {name} | {'<br>'.join(cells)} |")
    return "\n".join([BEGIN, *lines, END])


def main() -> None:
    """Write the table into the README."""
    readme = HERE / "README.md"
    text = readme.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(before + written() + after)


if __name__ == "__main__":
    main()
