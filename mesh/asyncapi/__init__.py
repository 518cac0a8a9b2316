"""AsyncAPI 3.0 from policies and classifications: who may send what, and what each reader sees of it. Pure.

    document.py   channels, operations and messages of a tenant, or of what one team may do
    payloads.py   the JSON Schema of an event, as it is sent and as a view shows it
    forms.py      what each mask leaves of a value, as JSON Schema

Channels are the kinds of types that no policy tells apart (`mesh.policy.atoms`), and everything said of them is read
off the same matrix that `mesh policy who-can-see` and `diff` read: it cannot say more than agents enforce.

What policies do not know, the document does not say: the JSON type of a field, which fields an event must have, and
fields that no classification names. Contracts are for that.

Source: AsyncAPI 3.0.0; JSON Schema draft-07, which is AsyncAPI's own.
"""

from __future__ import annotations

from mesh.asyncapi.document import document, listed

__all__ = ["document", "listed"]
