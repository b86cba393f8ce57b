"""The registered services in an SQLite file: what a restart of the gateway brings back.

1. One writer at a time, in a thread; a write that has begun is finished even when its caller is cancelled.
2. A disk that fails never stops the service: the registrations live on in memory, and `problem` says what is wrong.
3. The layout has a number (`user_version`); older files are migrated, newer ones are refused, broken ones are set aside.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.registry_view.registration import Registration
from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIGRATIONS = ("CREATE TABLE services (name TEXT PRIMARY KEY, registration BLOB NOT NULL, last_heartbeat TEXT NOT NULL)",)
"""The n-th brings a file from version n to n + 1."""
LOCK_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Row(msgspec.Struct, frozen=True):
    """One service as stored; `last_heartbeat` is for people, ISO 8601."""

    registration: Registration
    last_heartbeat: str


class ServiceStore:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        """Why the last write did not get onto the disk; None when it did."""
        self._writer = trio.Lock()

    async def load(self) -> list[Row]:
        """All rows. Blocks while the file is read. Raises Misconfigured when a newer version of the program wrote it."""
        try:
            return await trio.to_thread.run_sync(self._load)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                self._fails(error)
                return []
            aside = self.path.with_suffix(".broken")
            logger.warning("%s is not a database of ours (%s); it was renamed to %s", self.path.name, error, aside.name)
            return await trio.to_thread.run_sync(self._start_over, aside)
        except OSError as error:
            self._fails(error)
            return []

    async def write(self, changes: Mapping[str, Row | None]) -> None:
        """Store these services; None deletes. Blocks until it is on the disk or failed; see `problem`."""
        if not changes:
            return
        async with self._writer:
            try:
                await trio.to_thread.run_sync(self._write, changes)
            except (sqlite3.Error, OSError) as error:
                self._fails(error)
            else:
                self.problem = None

    def _fails(self, error: Exception) -> None:
        if self.problem is None:
            logger.error("registered services are not stored: %s; free the disk or choose another --state-dir", error)
        self.problem = str(error)

    def _start_over(self, aside: Path) -> list[Row]:
        try:
            self.path.replace(aside)
            return self._load()
        except (sqlite3.Error, OSError) as error:
            self._fails(error)
            return []

    def _load(self) -> list[Row]:
        with closing(self._open()) as database:
            found = database.execute("SELECT name, registration, last_heartbeat FROM services ORDER BY name").fetchall()
        rows = [_row(*columns) for columns in found]
        return [row for row in rows if row is not None]

    def _write(self, changes: Mapping[str, Row | None]) -> None:
        gone = [(name,) for name, row in changes.items() if row is None]
        kept = [
            (name, msgspec.json.encode(row.registration), row.last_heartbeat) for name, row in changes.items() if row is not None
        ]
        with closing(self._open()) as database, database:
            database.executemany("DELETE FROM services WHERE name = ?", gone)
            database.executemany("INSERT OR REPLACE INTO services VALUES (?, ?, ?)", kept)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=LOCK_SECONDS)
        try:
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise Misconfigured(
                f"{self.path} was written by a newer version (layout {version}, this one knows {len(MIGRATIONS)}); "
                "upgrade infermesh, or move the file away"
            )
        for number, statement in enumerate(MIGRATIONS[version:], start=version + 1):
            # By hand: the module starts no transaction for statements like these.
            database.executescript(f"BEGIN; {statement}; PRAGMA user_version = {number}; COMMIT")


def _row(name: str, registration: bytes, last_heartbeat: str) -> Row | None:
    try:
        return Row(msgspec.json.decode(registration, type=Registration), str(last_heartbeat))
    except msgspec.MsgspecError as error:
        logger.warning("the stored service %.64r is unreadable and was left out: %s", name, error)
        return None
