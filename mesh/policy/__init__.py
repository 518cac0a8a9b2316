"""Policies: who may publish, who sees what, and how it is masked. Pure: text and bytes in, decisions and fields out.

model.py            the kinds of documents, as types
nodes.py, bind.py   YAML text, strictly, to those types, with lines
check.py, crosscheck.py, load.py      what a document, and a set of them, must hold
paths.py, actions.py, mask.py         one event as one view shows it
expressions.py      conditions, a subset of CEL
rules.py, decide.py, grants.py        rights and refusals: for one event, and as NATS enforces them
bundle.py           one tenant's policies as numbered canonical bytes
compile.py          `Plans`: a bundle ready to decide and mask with
"""
