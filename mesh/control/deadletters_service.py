"""Dead letters as the control plane's door is asked: `ctl.dlq.<verb>`. The command line asks again for what follows.

    list      what letters say of themselves, without the event's data
    show      one letter, whole
    export    letters, whole
    redrive   sends letters back to the subscriptions that buried them
    discard   deletes them, and overwrites what they held on the disk

Who redrives, discards or exports, what and why, goes into the audit trail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mesh import audit, deadletters
from mesh.control import stored_messages
from mesh.control.deadletters import Filter, Letter, letter, letters
from mesh.control.redrive import Refused
from mesh.errors import BadAttribute, NotFound

if TYPE_CHECKING:
    from mesh.control.deadletters_judge import Judge
    from mesh.control.door import Handler
    from mesh.control.redrive import Redrives
    from mesh.jetstream.connection import Connection

MAX_LOOKED_AT = 5000  # letters of one request: under a second
MAX_LISTED = 500  # letters of one answer: 300 KB, where nobody writes long names
MAX_CHANGED = 100  # letters redriven or discarded by one request
MAX_BYTES = 900_000  # of letters in one answer, below NATS' max_payload; a whole one has at most 655,360
ROW_BYTES = 100  # of a row beside what its letter says
MAX_TEXT = 200  # characters of an author or a reason
MAX_BECAUSE = 500  # characters of why a letter is refused
_GONE = "there is no such letter"


class Asked(msgspec.Struct, frozen=True):
    """A request, as the command line sends it.

    Attributes:
        chosen: Which letters.
        after: Only those with higher numbers: the `next` of the answer before.
        last: And up to this number; 0 for the newest there is.
        limit: Change or tell at most so many.
        run: Of the redrive, the same in each of its requests.
        dry_run: Say what would be done.
        author, reason: Who asks and why.
    """

    chosen: Filter = Filter()
    after: int = 0
    last: int = 0
    limit: int = MAX_LISTED
    run: str = ""
    dry_run: bool = False
    author: str = ""
    reason: str = ""

    @property
    def said(self) -> dict[str, str | None]:
        """Who asks and why, for the audit trail."""
        return {"author": self.author[:MAX_TEXT] or None, "reason": self.reason[:MAX_TEXT] or None}


class DeadLetters:
    """What the door answers. See `handlers`.

    Args:
        connection: The control plane's, in the tenant account.
        tenant: Its name.
        redrives: Sends letters back.
        judge: Says what would be handed over.
        told: Takes audit records.
    """

    def __init__(
        self, connection: Connection, tenant: str, redrives: Redrives, judge: Judge, told: Callable[..., None]
    ) -> None:
        self._connection = connection
        self._tenant = tenant
        self._redrives = redrives
        self._judge = judge
        self._told = told

    def handlers(self) -> dict[str, Handler]:
        """By verb."""
        verbs = {
            "list": self.listed,
            "show": self.shown,
            "export": self.export,
            "redrive": self.redrive,
            "discard": self.discard,
        }
        return {verb: _reading(handle) for verb, handle in verbs.items()}

    # --- looking -----------------------------------------------------------------------------------------------------

    async def listed(self, asked: Asked) -> dict[str, Any]:
        """Letters without their events.

        Returns:
            `letters`, oldest first, and `next`: after which to ask for more; 0 where that was all. `last` goes into the
            next request, so that a list has an end while letters come.
        """
        found, following, last = await self._find(asked, min(asked.limit, MAX_LISTED), weigh=_row_size)
        under_way = await self._redrives.under_way()
        rows = [{**one.summary(), "run": under_way.get(one.number, "")} for one in found]
        return {"tenant": self._tenant, "letters": rows, "next": following, "last": last}

    async def shown(self, asked: Asked) -> dict[str, Any]:
        """One letter as stored.

        Raises:
            NotFound: There is no such letter (any more).
        """
        number = asked.chosen.letters[0] if len(asked.chosen.letters) == 1 else 0
        found = await letter(self._connection, number) if number else None
        if found is None or not found.matches(asked.chosen):
            raise _not_found([number] if number else [])
        run = (await self._redrives.under_way()).get(number, "")
        return {"tenant": self._tenant, **found.summary(), "run": run, "record": _record(found)}

    async def export(self, asked: Asked) -> dict[str, Any]:
        """Letters as stored, as many as fit; see `listed` for `next` and `last`."""
        found, following, last = await self._find(asked, min(asked.limit, MAX_LISTED), weigh=lambda one: len(one.body))
        rows = [{"letter": one.number, "at_ms": one.stored_ms, "record": _record(one)} for one in found]
        if found:
            self._told(audit.DLQ_EXPORTED, **self._facts(found, asked))
        return {"tenant": self._tenant, "letters": rows, "next": following, "last": last}

    # --- changing ----------------------------------------------------------------------------------------------------

    async def redrive(self, asked: Asked) -> dict[str, Any]:
        """Send letters back.

        Returns:
            `sent`: their numbers; `refused`: number, `code` and `because` of each that cannot be; `next` and `last` as
            `listed`.

        Raises:
            NotFound: None of the letters that are asked for by their numbers is there (any more).
            StreamUnavailable: `REDRIVE` is full; those before it are sent.
        """
        if not asked.run:
            raise BadAttribute(
                "a redrive has no run", expected="`run`, an id of your own", next="use `mesh dlq redrive`"
            )
        await self._judge.refresh()
        found, following, last = await self._find(asked, min(asked.limit, MAX_CHANGED))
        sent: list[Letter] = []
        refused = [_refusal(number, NotFound.code, _GONE) for number in _missing(asked, found, following)]
        try:
            for one in found:
                try:
                    await (self._redrives.check(one) if asked.dry_run else self._redrives.send(one, asked.run))
                except Refused as error:
                    refused.append(_refusal(one.number, error.code, error.because))
                else:
                    sent.append(one)
        finally:
            if sent and not asked.dry_run:
                self._told(audit.DLQ_REDRIVEN, run=asked.run, refused=len(refused), **self._facts(sent, asked))
        if sent and not asked.dry_run:
            await self._redrives.tell()
        return {
            "run": asked.run,
            "sent": [one.number for one in sent],
            "refused": refused,
            "next": following,
            "last": last,
        }

    async def discard(self, asked: Asked) -> dict[str, Any]:
        """Delete letters; one that is on its way is taken back first.

        Returns:
            `discarded`: how many; `missing`: which were asked for by number and are not there; `next` and `last` as
            `listed`.

        Raises:
            NotFound: As `redrive`.
        """
        if not asked.reason and not asked.dry_run:
            raise BadAttribute("nobody says why", expected="`reason`", next="say so with --reason")
        found, following, last = await self._find(asked, min(asked.limit, MAX_CHANGED))
        missing = _missing(asked, found, following)
        gone: list[Letter] = []
        try:
            for one in found if not asked.dry_run else ():
                await self._redrives.take_back(one.number)
                if await stored_messages.delete(self._connection, deadletters.STREAM, one.number):
                    gone.append(one)
        finally:
            if gone:
                self._told(audit.DLQ_DISCARDED, **self._facts(gone, asked))
        discarded = len(found if asked.dry_run else gone)
        return {"discarded": discarded, "missing": missing, "next": following, "last": last}

    # --- both --------------------------------------------------------------------------------------------------------

    async def _find(
        self, asked: Asked, limit: int, *, weigh: Callable[[Letter], int] = lambda _: 0
    ) -> tuple[list[Letter], int, int]:
        """The next letters that are meant, of `MAX_BYTES`; after which to go on, 0 at the end; and where that is."""
        asked.chosen.check()
        last = asked.last or await stored_messages.last_sequence(self._connection, deadletters.STREAM)
        found: list[Letter] = []
        size, looked_at, before = 0, 0, asked.after
        async for one in letters(self._connection, asked.chosen, after=asked.after, last=last):
            if one.matches(asked.chosen):
                size += weigh(one)
                if found and size > MAX_BYTES:
                    return found, before, last
                found.append(one)
            looked_at, before = looked_at + 1, one.number
            if len(found) >= limit or looked_at >= MAX_LOOKED_AT:
                return found, before if before < last else 0, last
        return found, 0, last

    def _facts(self, found: list[Letter], asked: Asked) -> dict[str, Any]:
        owners = sorted({f"{one.team}/{one.subscription}" for one in found})
        return {
            "letters": len(found),
            "first": found[0].number,
            "last": found[-1].number,
            "of": owners,
            **asked.chosen.facts,
            **asked.said,
        }


def _record(found: Letter) -> msgspec.Raw | None:
    """As stored; None where that is no letter."""
    return None if found.record is None else msgspec.Raw(found.body)


def _row_size(one: Letter) -> int:
    return ROW_BYTES + len(msgspec.json.encode(one.summary()))


def _refusal(number: int, code: str, because: str) -> dict[str, Any]:
    return {"letter": number, "code": code, "because": deadletters.one_line(because, MAX_BECAUSE)}


def _missing(asked: Asked, found: list[Letter], following: int) -> list[int]:
    """Which of the letters that this page is about were asked for by number, and are not there (any more).

    Raises:
        NotFound: All of them, and no page goes before.
    """
    there = {one.number for one in found}
    about = [number for number in asked.chosen.letters if asked.after < number <= (following or number)]
    missing = sorted({number for number in about if number not in there})
    if missing and not found and not asked.after:
        raise _not_found(missing)
    return missing


def _not_found(numbers: list[int]) -> NotFound:
    return NotFound(
        _GONE,
        expected="the number of one",
        got=", ".join(map(str, numbers[:10])) or "none",
        next="`mesh dlq list` shows them; one that was redriven and handled is gone",
    )


def _reading(handle: Callable[[Asked], Awaitable[dict[str, Any]]]) -> Handler:
    """*handle* as the door calls it. A request that is none is refused with BadAttribute."""

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            asked = msgspec.convert(request, Asked)
        except msgspec.ValidationError as error:
            raise BadAttribute(f"the request is malformed: {error}", expected="what `mesh dlq` sends") from error
        if asked.limit < 1:
            raise BadAttribute("`limit` is no number of letters", expected="a whole number from 1")
        return await handle(asked)

    return answer
