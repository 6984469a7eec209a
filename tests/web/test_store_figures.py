from backend_stores import MemoryStore, stored_bytes
from millstream._app.parts.web import store_figures
from millstream._stores.health import StoreHealth


async def test_memory_store_reports_usage_and_limits() -> None:
    store = MemoryStore(max_value_bytes=10_000, max_log_bytes=20_000)
    health = StoreHealth("memory", store)
    assert store_figures(health) == {
        "kind": "memory",
        "up": True,
        "values": {"bytes": 0, "max_bytes": 10_000},
        "log": {},
    }
    await store.kv.put("key", b"x" * 1000, 60)
    await store.log.append("hub:journal", b"x" * 2000, ttl=60, max_entries=10)
    figures = store_figures(health)
    assert figures["values"]["bytes"] == stored_bytes(store.kv) > 1000
    assert figures["log"]["hub"]["bytes"] == stored_bytes(store.log) > 2000
    assert figures["log"]["hub"]["max_bytes"] == 20_000
