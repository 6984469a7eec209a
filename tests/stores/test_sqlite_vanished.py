"""The SQLite file is deleted, moved or replaced while a server has it: what is acknowledged stays on the disk."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millstream._stores.base import StoreUnavailable
from millstream._stores.sqlite import commits
from millstream._stores.sqlite.location import locate
from millstream._stores.sqlite.store import SqliteStore
from store_parts import TTL, append, data_of, read_all

STREAM = "hub:journal"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteStore]:
    monkeypatch.setattr(commits, "PAUSE", 0.0)
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    yield store
    await store.close()


def move_away(path: Path, *, copy: bool) -> Path:
    """Where the file is now; a copy may stay in its place."""
    kept = path.with_name("kept")
    path.rename(kept)
    if copy:
        path.write_bytes(kept.read_bytes())
    return kept


def move_back(kept: Path, path: Path, *, there: bool) -> None:
    """The file is in its place again, where something may have been, or nothing."""
    assert path.exists() == there, "nobody has made an empty one meanwhile"
    kept.replace(path)


def copy_files(path: Path, to: Path) -> None:
    """The database and its log."""
    for end in ("", "-wal"):
        to.with_name(to.name + end).write_bytes(path.with_name(path.name + end).read_bytes())


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_is_gone_takes_nothing_more_and_what_it_had_is_read(
    store: SqliteStore, path: Path, how: str
) -> None:
    """Fixed defect: the store went on to acknowledge, and all of it was lost with the process. SQLite writes to a file
    that has no name anymore as to any other.
    """
    (before,) = await append(store, STREAM, b"before")
    await store.kv.put("s:a", b"a", TTL)
    kept = move_away(path, copy=how == "replaced")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"store\.db was deleted, moved or replaced while"):
            await append(store, STREAM, b"refused")
        with pytest.raises(StoreUnavailable):
            await store.kv.put("s:a", b"refused", TTL)
        assert data_of(await read_all(store, STREAM)) == [b"before"]
        assert await store.kv.get("s:a") == b"a"
    move_back(kept, path, there=how == "replaced")
    (after,) = await append(store, STREAM, b"after")
    assert after.offset == before.offset + 1
    await store.close()
    await store.open()
    assert data_of(await read_all(store, STREAM)) == [b"before", b"after"]
    assert store.epoch == before.epoch


async def test_a_write_ahead_log_that_somebody_deleted_is_made_again_with_all_that_was_in_it(
    store: SqliteStore, path: Path, tmp_path: Path
) -> None:
    """Fixed defect: what was acknowledged from then on was in a file without a name."""
    (before,) = await append(store, STREAM, b"before")
    path.with_name("store.db-wal").unlink()
    with pytest.raises(StoreUnavailable, match=r"store\.db-wal was deleted"):
        await append(store, STREAM, b"refused")
    assert data_of(await read_all(store, STREAM)) == [b"before"], "whoever reads waits until it's mended"
    (after,) = await append(store, STREAM, b"after")
    assert after.offset == before.offset + 1
    copy_files(path, tmp_path / "copy.db")  # as kill -9 leaves them
    copy = SqliteStore(locate(f"sqlite:///{tmp_path}/copy.db"))
    await copy.open()
    try:
        assert data_of(await read_all(copy, STREAM)) == [b"before", b"after"]
    finally:
        await copy.close()
