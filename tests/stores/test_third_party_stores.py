from pathlib import Path

import pytest

from millstream.extensions import LocalError
from store_parts import open_store

SHELF = """
from millstream._stores.memory.store import MemoryBackend

def open_shelf(url):
    assert url == "shelf://top"
    return MemoryBackend(epoch="shelf")
"""


async def test_packages_can_register_a_url_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalError, match="Unknown store 'shelf'"):
        open_store("shelf://top")
    (tmp_path / "shelf_of_a_test.py").write_text(SHELF)
    info = tmp_path / "shelf_of_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-of-a-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[millstream.stores]\nshelf = shelf_of_a_test:open_shelf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    store = open_store("shelf://top")
    await store.open()
    await store.kv.put("key", b"value", 60.0)
    assert await store.kv.get("key") == b"value"
    assert store.epoch == "shelf"
    await store.close()
