"""Policies: who may publish, who sees what, and how it is masked. Pure: text and bytes in, decisions and fields out.

What is written:
model.py                                the kinds of documents, as types; schema.py: their shapes, for editors
model_*.py                              what kinds share (words), and what one of them is mostly made of
nodes.py, bind.py                       YAML text, strictly, to those types, with lines
check*.py, crosscheck.py, load.py       what a document, and a set of them, must hold
expressions.py, cel/                    conditions, a subset of CEL

What it comes to, for one event:
compile.py                              `Plans`: a bundle ready to decide and mask with
rules.py, decide.py, routes.py          rights, refusals and routes; wanted.py: what of an event they read
paths.py, judge.py, walkers.py, mask.py one event as one view shows it
actions.py, generalize.py, ciphers.py   what each mask makes of a value
tighten.py, bridge.py                   a stored copy under the policies of then and of now

What it comes to, for everybody:
grants.py, granting.py                  the same as NATS enforces it
atoms.py, reach.py, fields.py           the kinds of types there are, and the places in their events
matrix.py, seen.py                      who sees what, exactly
diff*.py, joint.py, wider.py, replay.py two sets of policies compared
suite.py, trial.py, coverage.py         the policies' own tests; invariants.py: what holds of the whole matrix
explain*.py, because.py, enforced.py    one decision taken apart
sentences.py, lint.py                   policies read back in English, and what deserves a look

How it travels:
bundle.py, history.py                   one tenant's policies as numbered canonical bytes that remember those before
envelope.py                             signed and chained; candidate.py: signed, and never in force
shadow*.py                              a candidate beside the policies in force
"""
