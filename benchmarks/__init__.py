"""One file per question, one runner, one table. `make bench`, or `python -m benchmarks --only publish --quick`.

A question is a module `bench_<something>.py` with

    NAME = "publish"                                          what --only takes
    KEYS = {"ratio": Key("x", must=1.15, aim=1.6)}            each figure: unit, target, and which way is better
    async def run(quick: bool) -> dict[str, Figure]           the figures, under the names in KEYS

A name with a dot, `http_added_ms.p50`, is a group in JSON. The questions of the design's table are in `runner.TABLE`;
the others are asked by `--only` or `--all`. A question refuses its own run where it was not valid (`validity`): events
lost, unverified, unmasked, or stored in an easier way; then there are no figures at all.

`quick` answers in seconds whether the benchmark works; its figures are not to be quoted. Machines are shared and speeds
wander, so what is compared runs in turns (`interleave`), a figure is the median of its rounds with the lowest and the
highest beside it, and a target is a ratio within one run or a latency, never a rate alone. README.md has the rest.
"""
