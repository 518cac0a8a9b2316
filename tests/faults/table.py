"""Which test stands for which promise: what happens when something breaks (design, section 10).

`python -m tests.faults.table` writes the table into the README beside it; a test compares both, and sees that every
test named is there.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TESTS = HERE.parent
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


class Promise(NamedTuple):
    """What holds when something breaks, and the tests that break it: `<directory>/<file>:<test>` without `test_`."""

    fault: str
    holds: str
    tests: str


PROMISES = (
    Promise(
        "NATS unreachable, minutes to hours",
        "202 from the spool; order kept; drained after; no duplicate inside the window",
        "faults/run:nothing_is_lost_or_done_twice"
        " contract/spool:an_outage_costs_nothing_and_reorders_nothing"
        " contract/spool:full_means_503_and_nothing_half_done"
        " contract/publisher:a_hang_past_the_deadline_stores_nothing_twice",
    ),
    Promise(
        "agent killed -9 at any point",
        "nothing that got 202 is lost; nothing is delivered unsigned or unmasked",
        "faults/agent_killed:every_accepted_event_is_stored_once_in_each_view faults/run:a_planted_bug_is_found"
        " contract/spool_killed:killed_at_any_moment_of_an_outage"
        " contract/spool:what_is_stricter_today_is_applied_before_it_is_sent",
    ),
    Promise(
        "consumer killed while handling",
        "redelivered after ack_wait; effects once with an Inbox",
        "journey/nothing_lost:consumers_killed_again_and_again_cost_nothing faults/run:nothing_is_lost_or_done_twice"
        " unit/inbox_sqlite:killed_around_its_commit contract/inbox_postgres:many_replicas_race_for_the_same_events"
        " journey/readme:a_deal_becomes_one_invoice_and_one_event",
    ),
    Promise(
        "a replica of an ordered subscription killed",
        "no event overtakes an earlier one of its key, whoever handles them",
        "contract/ordered_replicas:replicas_die_stop_come_and_go_and_no_key_is_out_of_order"
        " contract/ordered:a_key_waits_for_its_retries_and_others_do_not"
        " faults/run:nothing_is_lost_or_done_twice",
    ),
    Promise(
        "server killed, cluster leader lost",
        "publishers resend with the same ids; consumers pull again within seconds",
        "contract/publisher:kill_nine_under_load_loses_nothing_and_keeps_order"
        " contract/publisher:nothing_overtakes_what_was_lost_before_it"
        " contract/spool:what_is_lost_in_a_drain_is_not_overtaken"
        " faults/run:nothing_is_lost_or_done_twice",
    ),
    Promise(
        "poison event",
        "other keys go on; dead letter with reason; one command redrives",
        "journey/nothing_lost:a_dead_letter_waits_for_its_stream faults/run:nothing_is_lost_or_done_twice"
        " journey/dead_letters:letters_are_handled_once_what_failed_is_mended"
        " journey/dead_letters:what_a_plain_client_leaves_is_a_letter",
    ),
    Promise(
        "policy service down, bundle corrupt or older",
        "last good bundle stays in force; the bad one is refused loudly",
        "contract/bundle_watch:an_agent_without_nats_starts_with_the_last_good_bundle"
        " contract/bundle_watch:an_older_bundle_is_refused_across_a_restart"
        " attacks/bundle_attacks:it_is_refused_loudly_and_the_good_bundle_stays",
    ),
    Promise(
        "control plane killed, stopped or cut off",
        "publishing and consuming go on; another replica leads within seconds, and what was answered is in force",
        "journey/control_replicas:what_was_answered_outlives_a_leader_that_is_killed"
        " journey/control_replicas:a_leader_that_was_stopped_changes_nothing_when_it_goes_on"
        " faults/run:nothing_is_lost_or_done_twice",
    ),
    Promise(
        "an event dropped, moved or brought in by the broker",
        "found, by number and signature, between any two points",
        "contract/completeness:a_message_taken_away_is_missing"
        " contract/completeness:messages_that_changed_places_are_reordered"
        " attacks/suppression:taking_an_event_away attacks/suppression:bringing_in_an_event",
    ),
    Promise(
        "stolen key",
        "revoked in seconds; earlier events stay valid by stream time",
        "attacks/trust:a_stolen_key contract/revocation:under_load_nothing_at_or_after_the_cut_is_handed_over",
    ),
    Promise(
        "bad input (huge, deep, wrong type, header tricks, unknown fields)",
        "4xx with code and reason; the process stays up; nothing half published",
        "attacks/doors:bodies_beyond_every_limit attacks/doors:headers_that_only_the_mesh_writes"
        " contract/agent_fuzz:any_json_is_answered contract/agent_fuzz:any_bytes_are_answered"
        " contract/agent_fuzz:any_stream_of_bytes_is_survived",
    ),
    Promise(
        "clock wrong",
        "not ready, and nothing is signed by it",
        "contract/agent_clock:an_agent_with_a_wrong_clock_takes_nothing faults/run:nothing_is_lost_or_done_twice",
    ),
    Promise(
        "server returns with old grants",
        "told what it missed within seconds",
        "contract/accounts_cluster:a_server_that_comes_back_is_told_what_it_missed",
    ),
)


def named(promise: Promise) -> list[tuple[str, str]]:
    """The tests of a promise, as file below `tests/` and function."""
    found = []
    for test in promise.tests.split():
        place, _, name = test.partition(":")
        directory, _, file = place.partition("/")
        found.append((f"{directory}/test_{file}.py", f"test_{name}"))
    return found


def is_there(file: str, function: str) -> bool:
    """Whether a file below `tests/` has a test of that name."""
    path = TESTS / file
    return path.exists() and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
        for node in ast.parse(path.read_text()).body
    )


def written() -> str:
    """The table for people, in Markdown."""
    lines = ["| when | what holds | tests |", "|---|---|---|"]
    for promise in PROMISES:
        tests = [f"`{file.removesuffix('.py')}::{test.removeprefix('test_')}`" for file, test in named(promise)]
        lines.append(f"| {promise.fault} | {promise.holds} | {'<br>'.join(tests)} |")
    return "\n".join([BEGIN, *lines, END])


def main() -> None:
    """Write the table into the README."""
    readme = HERE / "README.md"
    text = readme.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(before + written() + after)


if __name__ == "__main__":
    main()
