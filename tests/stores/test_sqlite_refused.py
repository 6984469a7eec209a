import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from backend_stores import SqliteStore
from cases import for_each
from millstream._protocol.errors import LocalError
from millstream._stores import open_store
from millstream._stores.sqlite.file import locate
from store_parts import TTL, append


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def a_newer_one(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript("PRAGMA application_id=1297306706; PRAGMA user_version=99; CREATE TABLE x (y)")
    database.close()


def of_another_program(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript("CREATE TABLE customers (name); INSERT INTO customers VALUES ('ann')")
    database.close()


def of_another_program_that_is_marked(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript("PRAGMA application_id=7; CREATE TABLE x (y)")
    database.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"#!/bin/sh\necho this is a script, and of some length, so that it could be a header\n" * 50)


def fill(path: Path) -> None:
    async def fill() -> None:
        store = SqliteStore(locate(f"sqlite:///{path}"))
        await store.open()
        for n in range(50):
            await append(store, f"call:{n}", bytes(1000), b"x" * 1000)
            await store.kv.put(f"session:{n}", b"%d" % n, TTL)
        await store.close()

    asyncio.run(fill())


def truncated(path: Path) -> None:
    fill(path)
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    fill(path)
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(content)


def make_without(what: str) -> Callable[[Path], None]:
    """Return a function that makes a valid file and deletes one part of it."""

    def made(path: Path) -> None:
        fill(path)
        database = sqlite3.connect(path)
        with database:
            database.execute(f"DELETE FROM {what}")  # noqa: S608  the words are ours
        database.close()

    return made


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a newer version": (a_newer_one, "another version"),
    "another program's": (of_another_program, "another program"),
    "another program's, marked": (of_another_program_that_is_marked, "another program"),
    "no database": (no_database, "isn't a SQLite database"),
    "truncated": (truncated, "damaged"),
    "overwritten": (overwritten, "damaged"),
    "without its epoch": (make_without("meta WHERE name='epoch'"), "damaged"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_unusable_files_are_rejected_and_unchanged(path: Path, what: str) -> None:
    make, reason = REFUSED[what]
    make(path)
    before = path.read_bytes()
    with pytest.raises(LocalError, match=reason) as error:
        asyncio.run(SqliteStore(locate(f"sqlite:///{path}")).open())
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


def test_empty_files_become_new_stores(path: Path) -> None:
    path.touch()
    fill(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/such/store.db", "folder doesn't exist"), (".", "is a folder"), ("file/store.db", "a file")],
)
async def test_invalid_file_locations_are_reported(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match=reason):
        await SqliteStore(locate(f"sqlite:///{tmp_path / name}")).open()


@for_each(
    "url",
    ["sqlite://store.db", "sqlite:///", "sqlite:////", "sqlite:///x/", "sqlite://u:hunter2@h/x", "sqlite:///x?key=hunter2",
     "sqlite:///x?durability=off", "sqlite:///x?durability=hunter2", "sqlite:///%00"],
)  # fmt: skip
def test_invalid_sqlite_urls_show_the_right_form(url: str) -> None:
    with pytest.raises(LocalError, match=r"sqlite:///|durability=normal") as error:
        open_store(url)
    assert "hunter2" not in str(error.value)


def test_sqlite_path_is_relative_after_three_slashes_and_absolute_after_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("sqlite:///a/b.db").path == tmp_path / "a" / "b.db"
    assert locate("sqlite:////a/b%20c.db?durability=full").path == Path("/a/b c.db")
    for url in ("sqlite:///a/b%3Fc%25d%23.db", "sqlite:////x.db?durability=full"):
        assert locate(locate(url).url) == locate(url)
