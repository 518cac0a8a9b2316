"""What the demo's three SaaS systems send: made up from a seed, of real shape, full of personal data nobody has."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mesh.demo.sender import Send

if TYPE_CHECKING:
    from pathlib import Path

TENANT = "acme"
CRM, BILLING, GITHUB = "crm-adapter", "billing-adapter", "github-adapter"
WEBHOOK = "github"
KILLED = "analytics"
TEAMS = ("analytics", "billing", "security", "support")
CONSENT = 0.9  # of contacts: the others are no row of the view that analytics reads
BATCH_EVENTS = 10
REPEATS = 5  # events sent a second time, as an adapter does that missed the answer

_PEOPLE = (
    ("Ada", "Lindqvist"), ("Bruno", "Kessler"), ("Carla", "Moretti"), ("Dmitri", "Sokolov"), ("Elif", "Aydin"),
    ("Farid", "Haddad"), ("Greta", "Nyström"), ("Hugo", "Lefèvre"), ("Imani", "Okoye"), ("Jonas", "Wróbel"),
)  # fmt: skip
_PLACES = (
    ("DE", "Hamburg", "Elbchaussee"),
    ("FR", "Lyon", "Rue Mercière"),
    ("IT", "Torino", "Via Po"),
    ("SE", "Malmö", "Ågatan"),
)
_REPOSITORIES = ("billing-core", "crm-sync", "mesh-console")


@dataclass(slots=True)
class Script:
    """What is sent, in order, and which events make trouble for whom."""

    tenant: str
    sends: list[Send]
    killed: str
    showcase: tuple[str, str]
    teams: tuple[str, ...]
    troubles: dict[str, dict[str, str]] = field(default_factory=dict)

    @staticmethod
    def webhook_secret(data: Path) -> bytes:
        """The secret that the provider signs its webhooks with."""
        return (data / "agents" / GITHUB / "webhooks" / f"{WEBHOOK}.secret").read_bytes().strip()


def make_script(count: int, *, seed: int) -> Script:
    """At least *count* events over all doors and modes; the same seed gives the same ones."""
    made = _Maker(random.Random(seed))  # noqa: S311 - made-up people
    sends: list[Send] = []
    events = 0
    while events < count:
        send = made.send(len(sends))
        sends.append(send)
        events += len(send.events)
    sends += made.rng.sample([send for send in sends if send.mode != "batch"], REPEATS)
    deals = [send.events[0] for send in sends if send.events[0]["type"] == "crm.deal.won.v1"]
    contacts = [send.events[0] for send in sends if send.events[0]["type"].startswith("crm.contact.")]
    showcase, poison = deals[0], deals[1]
    return Script(
        tenant=TENANT,
        sends=sends,
        killed=KILLED,
        showcase=(showcase["source"], showcase["id"]),
        teams=TEAMS,
        troubles={"support": {"fail-twice": contacts[1]["id"]}, "billing": {"reject": poison["id"]}},
    )


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._number = 0

    def send(self, index: int) -> Send:
        """The next request: mostly single events, now and then a batch, a third of them webhooks."""
        kind = index % 9
        if kind in (2, 5, 8):
            return self._webhook()
        if kind in (0, 3):
            return Send(agent=CRM, mode="structured" if kind else "binary", events=[self._contact()])
        if kind == 6:  # noqa: PLR2004 - one request in nine
            return Send(agent=CRM, mode="structured", events=[self._deal()])
        if kind == 4:  # noqa: PLR2004 - one request in nine
            return Send(agent=CRM, mode="batch", events=[self._contact() for _ in range(BATCH_EVENTS)])
        return Send(agent=BILLING, mode="structured", events=[self._bill(failed=kind == 1)])

    def _event(self, source: str, type_: str, data: dict[str, Any], **more: str) -> dict[str, Any]:
        self._number += 1
        return {
            "specversion": "1.0",
            "id": f"{type_.partition('.')[0]}-{self._number:05d}",
            "source": source,
            "type": type_,
            "time": "2026-11-22T09:30:00Z",
            **more,
            "data": data,
        }

    def _person(self) -> dict[str, str]:
        first, last = self.rng.choice(_PEOPLE)
        return {
            "name": f"{first} {last}",
            "email": f"{first}.{last}@example.com".lower().replace("ö", "o").replace("è", "e").replace("ó", "o"),
            "phone": f"+49 40 {self.rng.randrange(1_000_000, 9_999_999)}",
        }

    def _contact(self) -> dict[str, Any]:
        country, city, street = self.rng.choice(_PLACES)
        number = str(self.rng.randrange(1000, 9999))
        data = {
            "contact": {
                "id": number,
                **self._person(),
                "birthdate": f"19{self.rng.randrange(50, 99)}-0{self.rng.randrange(1, 9)}-1{self.rng.randrange(9)}",
                "language": country.lower(),
                "note": "prefers to be called in the evening",
                "address": {"street": f"{street} {self.rng.randrange(1, 90)}", "city": city},
            },
            "account": {"id": f"acc-{self.rng.randrange(100)}", "name": "Elbe Bau GmbH", "segment": "smb"},
            "country": country,
            "consent": {"newsletter": True, "analytics": self.rng.random() < CONSENT},
            "changed": ["phone"],
        }
        type_ = self.rng.choice(("crm.contact.created.v1", "crm.contact.updated.v1"))
        return self._event("/salesforce/eu", type_, data, subject=f"contact/{number}")

    def _deal(self) -> dict[str, Any]:
        country, _, _ = self.rng.choice(_PLACES)
        buyer, seller = self._person(), self._person()
        account = f"acc-{self.rng.randrange(100)}"
        price = self.rng.randrange(1, 900)
        data = {
            "deal": {
                "id": f"d-{self._number}",
                "title": f"Renewal for {buyer['name']}",
                "amount": 30.0 * price,
                "currency": "EUR",
            },
            "account": {"id": account, "name": "Elbe Bau GmbH"},
            "contact": {"id": str(self.rng.randrange(1000, 9999)), "name": buyer["name"], "email": buyer["email"]},
            "owner": {"name": seller["name"]},
            "lines": [{"sku": "mesh-pro", "quantity": 30, "price": float(price)}],
            "country": country,
        }
        return self._event("/salesforce/eu", "crm.deal.won.v1", data, subject=f"account/{account}")

    def _bill(self, *, failed: bool) -> dict[str, Any]:
        country, city, street = self.rng.choice(_PLACES)
        person = self._person()
        account = f"acc-{self.rng.randrange(100)}"
        data: dict[str, Any] = {
            "invoice": {
                "number": f"2026-{self.rng.randrange(1000):03d}",
                "amount": round(self.rng.uniform(10, 20_000), 2),
                "currency": "EUR",
            },
            "customer": {"id": account, "name": person["name"], "email": person["email"]},
            "country": country,
        }
        if failed:
            data["customer"]["phone"] = person["phone"]
            data["payment"] = {"method": "sepa", "iban": self._iban(), "failure": "insufficient-funds", "attempt": 1}
            return self._event("/billing/psp", "billing.payment.failed.v1", data, subject=f"account/{account}")
        data["customer"]["address"] = {"street": f"{street} {self.rng.randrange(1, 90)}", "city": city}
        data["payment"] = {"method": "sepa", "iban": self._iban()}
        return self._event("/billing", "billing.invoice.issued.v1", data, subject=f"account/{account}")

    def _iban(self) -> str:
        return f"DE{self.rng.randrange(10, 99)}{self.rng.randrange(10**17, 10**18)}"

    def _webhook(self) -> Send:
        """A GitHub delivery; the event is what the mesh makes of it."""
        person = self._person()
        login = person["email"].partition("@")[0].replace(".", "-")
        user = {"login": login, "id": self.rng.randrange(10**6), "html_url": f"https://github.com/{login}"}
        repository = {
            "id": self.rng.randrange(10**6),
            "name": self.rng.choice(_REPOSITORIES),
            "private": True,
            "owner": user,
        }
        event = self.rng.choice(("push", "issues"))
        if event == "push":
            author = {"name": person["name"], "email": person["email"], "username": login}
            commit = {
                "id": f"{self.rng.getrandbits(160):040x}",
                "message": f"Fix for {person['name']}",
                "author": author,
            }
            payload = {"ref": "refs/heads/main", "commits": [commit], "repository": repository, "sender": user}
            type_ = "github.push.v1"
        else:
            issue = {
                "number": self.rng.randrange(999),
                "title": f"Call {person['phone']}",
                "user": user,
                "state": "open",
            }
            payload = {"action": "opened", "issue": issue, "repository": repository, "sender": user}
            type_ = "github.issues.opened.v1"
        fields = self._event("/github/github", type_, payload)
        fields["id"] = str(UUID(int=self.rng.getrandbits(128), version=4))
        del fields["time"]
        headers = {"X-GitHub-Event": event, "X-GitHub-Delivery": fields["id"]}
        return Send(agent=GITHUB, mode="webhook", events=[fields], webhook=WEBHOOK, headers=headers)
