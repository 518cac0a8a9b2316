"""The state of a control plane where every replica finds it: sealed, in the bucket `mesh_control`.

    head             {"generation", "term", "id", "parts"}: which parts are the state, and whose they are
    part.<id>.<n>    the files of `vault_files`, packed, compressed, sealed with `admin/state.key`, cut into pieces

A data directory is the working copy. `save` writes new parts, then the head over the one it knows: that one write
decides. Whoever takes the lead reads head and parts and writes them again in its own term, over the head it has read;
from then on whoever led before finds another head and fails. What no head names is swept.

Replicas that wait follow, so that each has a copy that is seconds old. A head that is older than what a replica has
seen is not believed: the servers came back with an old store. The leader looks at each new link and every minute
whether its head still stands, and writes all of it again where it does not.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh import logs
from mesh.control.datadir import hex_key, write_private
from mesh.control.vault_files import pack_state, unpack_state, write_state
from mesh.control.vault_head import HEAD, Head, read_head
from mesh.errors import ConfigError, Deposed, RequestFailed, Unavailable
from mesh.jetstream.manage import api
from mesh.jetstream.store import WRONG_LAST_SEQUENCE, KeyValue

if TYPE_CHECKING:
    from mesh.control.datadir import DataDirectory
    from mesh.jetstream.connection import Connection

BUCKET = "mesh_control"
STREAM = f"KV_{BUCKET}"
PART_BYTES = 512 * 1024  # half of what a message may have
SAVE_EVERY_S = 60.0  # what no answer waited for: a statement issued again, a mesh CA renewed
AGAIN_S = 5.0  # after a look that failed: servers that start take a while
READS = 5  # of a head whose parts are swept while we read them, or on a server that lags
READ_AGAIN_S = 0.2
_NONCE_BYTES = 12

log = logs.get("control")


class Vault:
    """The state of one data directory, and its place in the bucket.

    Args:
        connection: Of the control account; for `take` and `save` one that writes only while we lead.
        data: The data directory.
    """

    def __init__(self, connection: Connection, data: DataDirectory) -> None:
        self._connection = connection
        self._store = KeyValue(connection, BUCKET)
        self._root = data.root
        self._key = AESGCM(hex_key(data.admin / "state.key"))
        self._seen_file = data.admin / "state.generation"
        self._lock = anyio.Lock()
        self._term = 0
        self._revision = 0
        self._digest = b""
        self._id = ""
        self._linked = anyio.Event()
        self.generation = self._seen()

    async def is_first(self) -> bool:
        """Whether no state is stored, and this directory has never seen one.

        Raises:
            RequestFailed, Unavailable: The bucket refused or does not answer.
        """
        return not self.generation and await self._store.get(HEAD) is None

    # --- leading -----------------------------------------------------------------------------------------------------

    async def take(self, term: int) -> None:
        """Bring the data directory to the state, and make it ours: the first thing a leader does.

        Raises:
            Deposed: Another one took it in the same moment.
            ConfigError: The state does not open with our key, or is of another version.
            OSError: A file cannot be written.
            RequestFailed, Unavailable: The bucket refused or does not answer, or the state is not whole.
        """
        async with self._lock:
            self._term = term
            found = await self._read()
            if found is None:
                if self.generation:
                    log.error("control_state_put_back", generation=self.generation, found="nothing")
                self._revision = 0
            else:
                head, self._revision, files = found
                if head.term > term:
                    raise Deposed("the state is a later leader's", expected=f"term {term}", got=f"term {head.term}")
                if head.generation < self.generation:
                    log.error("control_state_put_back", generation=self.generation, found=head.generation)
                else:
                    await self._write_files(head.generation, files)
            self._digest = b""
            await self._save()

    async def save(self) -> None:
        """Put what changed in the data directory into the bucket; nothing changed costs nothing.

        Raises:
            Deposed: We do not lead any more.
            RequestFailed, Unavailable: The bucket refused or does not answer; the next save tries again.
        """
        async with self._lock:
            await self._save()

    async def run(self) -> None:
        """Save every minute what nobody waited for, and all of it where the servers lost it; until cancelled.

        Raises:
            Deposed: We do not lead any more.
        """
        forget, pause_s = self._connection.on_connect(self._wake), SAVE_EVERY_S
        try:
            while True:
                with anyio.move_on_after(pause_s):
                    await self._linked.wait()
                self._linked, pause_s = anyio.Event(), SAVE_EVERY_S
                try:
                    async with self._lock:
                        await self._save(look=True)
                except Deposed:
                    raise
                except (RequestFailed, Unavailable) as error:
                    log.error("control_state_not_saved", code=error.code, error=error.message)
                    pause_s = AGAIN_S
        finally:
            forget()

    def _wake(self) -> None:
        self._linked.set()

    async def _save(self, *, look: bool = False) -> None:
        """Save what changed; with *look* also what did not, where the servers have it no more."""
        packed = await anyio.to_thread.run_sync(pack_state, self._root)
        digest = sha256(packed).digest()
        if digest == self._digest and not (look and await self._lost()):
            return
        name = secrets.token_hex(8)
        size = _NONCE_BYTES + len(packed) + 16
        head = Head(self.generation + 1, self._term, name, -(-size // PART_BYTES))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._key.encrypt(nonce, packed, msgspec.json.encode(head))
        for number in range(head.parts):
            piece = sealed[number * PART_BYTES : (number + 1) * PART_BYTES]
            await self._store.put(f"part.{name}.{number}", piece, 0)
        self._revision = await self._put_head(head)
        self._digest, self._id = digest, name
        await self._note(head.generation)
        await self._sweep(name)

    async def _lost(self) -> bool:
        """Whether another head stands than the one we wrote: the servers came back with an older store."""
        for _ in range(READS):
            entry = await self._store.get(HEAD)
            if entry is not None and entry.revision == self._revision and read_head(entry).id == self._id:
                return False
            await anyio.sleep(READ_AGAIN_S)
        found = "nothing" if entry is None else read_head(entry).generation
        log.error("control_state_put_back", generation=self.generation, found=found)
        return True

    async def _put_head(self, head: Head) -> int:
        """Write the head over the one we know, or over an older one; returns its revision."""
        value = msgspec.json.encode(head)
        try:
            return await self._store.put(HEAD, value, self._revision)
        except RequestFailed as error:
            if error.details.get("err_code") != WRONG_LAST_SEQUENCE:
                raise
        entry = await self._store.get(HEAD)
        if entry is not None and not self._may_replace(read_head(entry)):
            raise Deposed("another replica wrote the state", expected=f"term {self._term}", next="nothing: it leads")
        return await self._store.put(HEAD, value, 0 if entry is None else entry.revision)

    def _may_replace(self, found: Head) -> bool:
        """It is ours, from a write of which we got no answer; or older than what we know, of an old store."""
        return found.term == self._term or (found.term < self._term and found.generation <= self.generation)

    async def _sweep(self, keep: str) -> None:
        """Delete the parts that no head names. What fails is tried again after the next save."""
        subject = f"$KV.{BUCKET}.part."
        try:
            info = await api(self._connection, f"STREAM.INFO.{STREAM}", {"subjects_filter": f"{subject}>"})
            names = {one.removeprefix(subject).partition(".")[0] for one in info["state"].get("subjects") or ()}
            for name in sorted(names - {keep}):
                await api(self._connection, f"STREAM.PURGE.{STREAM}", {"filter": f"{subject}{name}.>"})
        except Deposed:
            raise
        except (RequestFailed, Unavailable) as error:
            log.warning("control_state_not_swept", code=error.code, error=error.message)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def follow(self) -> bool:
        """Bring the data directory to the state, where it is newer; returns whether anything changed.

        Raises:
            ConfigError: The state does not open with our key, or is of another version.
            OSError: A file cannot be written; the next call tries again.
            RequestFailed, Unavailable: The bucket refused or does not answer, or the state is not whole.
        """
        async with self._lock:
            entry = await self._store.get(HEAD)
            if entry is None or entry.revision == self._revision:
                return False
            found = await self._read()
            if found is None:
                return False
            head, revision, files = found
            older, changed = head.generation < self.generation, False
            if older:
                log.error("control_state_is_older", generation=self.generation, found=head.generation)
            else:
                changed = await self._write_files(head.generation, files)
            self._revision = revision
            return changed

    async def _read(self) -> tuple[Head, int, dict[str, bytes]] | None:
        """Head, its revision, and the files; None before the first."""
        for _ in range(READS):
            entry = await self._store.get(HEAD)
            if entry is None:
                return None
            head = read_head(entry)
            pieces = [await self._store.get(f"part.{head.id}.{number}") for number in range(head.parts)]
            if all(pieces):
                sealed = b"".join(piece.value for piece in pieces if piece is not None)
                return head, entry.revision, self._opened(head, sealed)
            await anyio.sleep(READ_AGAIN_S)  # it was saved again meanwhile, or this server lags
        raise Unavailable(
            "the state of the control plane is incomplete",
            expected=f"{head.parts} parts of generation {head.generation}",
            got=f"{sum(piece is not None for piece in pieces)}",
            next=f"where it stays so, purge {HEAD} of the bucket {BUCKET} while the replica with the highest number in"
            " admin/state.generation runs alone: it puts its own copy back",
        )

    def _opened(self, head: Head, sealed: bytes) -> dict[str, bytes]:
        try:
            packed = self._key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], msgspec.json.encode(head))
        except (InvalidTag, ValueError) as error:
            raise ConfigError(
                "the state of the control plane does not open with admin/state.key",
                expected="the state.key with which it was sealed",
                next="give every replica the key files of one `mesh control init`",
            ) from error
        return unpack_state(packed)

    # --- the working copy --------------------------------------------------------------------------------------------

    async def _write_files(self, generation: int, files: dict[str, bytes]) -> bool:
        changed = await anyio.to_thread.run_sync(write_state, self._root, files)
        await self._note(generation)
        return bool(changed)

    async def _note(self, generation: int) -> None:
        self.generation = generation
        await anyio.to_thread.run_sync(write_private, self._seen_file, f"{generation}\n".encode())

    def _seen(self) -> int:
        try:
            return int(self._seen_file.read_text())
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise ConfigError(
                f"{self._seen_file} is no number", next="delete it; the state of the bucket is then believed"
            ) from error
