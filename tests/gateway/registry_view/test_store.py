import sqlite3
from contextlib import closing

import pytest
import trio

from gateway.registry_view.store import MIGRATIONS, Row, ServiceStore
from mesh.errors import Misconfigured


async def test_what_is_written_is_there_again_and_what_is_deleted_is_not(tmp_path, registration):
    store = ServiceStore(tmp_path / "s.sqlite3")
    assert await store.load() == []
    rows = {name: Row(registration(name, metadata={"a": [1]}), "then") for name in ("a", "b", "c")}
    await store.write(rows)
    await store.write({"b": None, "a": Row(registration("a", status="stopped"), "now")})
    found = await ServiceStore(tmp_path / "s.sqlite3").load()
    assert found == [Row(registration("a", status="stopped"), "now"), rows["c"]]
    assert store.problem is None


async def test_writes_at_the_same_time_all_arrive(tmp_path, registration):
    store = ServiceStore(tmp_path / "s.sqlite3")
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(store.write, {f"s{number}": Row(registration(f"s{number}"), "")})
    assert len(await store.load()) == 20


async def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "s.sqlite3"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(Misconfigured, match="newer version"):
        await ServiceStore(path).load()


async def test_a_broken_file_is_set_aside_and_not_destroyed(tmp_path, registration):
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"this is no database" * 100)
    store = ServiceStore(path)
    assert await store.load() == []
    await store.write({"a": Row(registration("a"), "")})
    assert len(await store.load()) == 1
    assert path.with_suffix(".broken").read_bytes().startswith(b"this is no database")


async def test_a_row_that_cannot_be_read_is_left_out(tmp_path, registration):
    path = tmp_path / "s.sqlite3"
    store = ServiceStore(path)
    await store.write({"a": Row(registration("a"), "")})
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO services VALUES ('b', '{}', '')")
    assert [row.registration.name for row in await store.load()] == ["a"]


async def test_a_disk_that_fails_is_a_problem_that_passes(tmp_path, registration, caplog):
    store = ServiceStore(tmp_path / "missing" / "s.sqlite3")
    assert await store.load() == []
    await store.write({"a": Row(registration("a"), "")})
    assert store.problem
    assert "--state-dir" in caplog.text
    (tmp_path / "missing").mkdir()
    await store.write({"a": Row(registration("a"), "")})
    assert store.problem is None
    assert len(await store.load()) == 1


async def test_a_full_disk_is_a_problem_and_no_end(tmp_path, registration, monkeypatch):
    store = ServiceStore(tmp_path / "s.sqlite3")
    await store.load()
    opened = ServiceStore._open

    def small(self):
        database = opened(self)
        database.execute("PRAGMA max_page_count = 4")
        return database

    monkeypatch.setattr(ServiceStore, "_open", small)
    await store.write({f"s{number}": Row(registration(f"s{number}", metadata={"x": "y" * 900}), "") for number in range(50)})
    assert "full" in str(store.problem)
