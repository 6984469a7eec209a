from millstream._app.parts.web import store_figures
from millstream._stores.health import StoreHealth
from millstream._stores.memory.store import MemoryStore


async def test_memory_store_reports_usage_and_limits() -> None:
    store = MemoryStore(max_value_bytes=10_000, max_log_bytes=20_000)
    health = StoreHealth("memory", store)
    assert store_figures(health, store) == {
        "kind": "memory",
        "up": True,
        "values": {"bytes": 0, "max_bytes": 10_000},
        "log": {},
    }
    await store.kv.put("key", b"x" * 1000, 60)
    await store.log.append("hub:journal", b"x" * 2000, ttl=60, max_entries=10)
    figures = store_figures(health, store)
    assert figures["values"]["bytes"] == store.kv.size > 1000
    assert figures["log"]["hub"]["bytes"] == store.log.size > 2000
    assert figures["log"]["hub"]["max_bytes"] == 20_000
