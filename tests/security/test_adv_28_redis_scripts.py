"""Redis scripts (CVE-2025-49844 and others): input is passed as an argument and never becomes part of a script, and the
documented Redis user can only do what Millstream needs.
"""

import re
from pathlib import Path

import pytest

import millstream
from hub_parts import Clients
from millstream.stores import ConcurrencySlot, Quota, RateCharge
from patience import WAIT
from redis_parts import RedisServer, open_worker, shared_servers
from scripts.docs import ROOT
from store_parts import TTL, append

LUA = Path(millstream.__file__).parent / "_stores" / "redis" / "lua"
EVIL = [
    "')redis.call('FLUSHALL')--", "]]redis.call('FLUSHALL')--[[", "\r\n*1\r\n$8\r\nFLUSHALL\r\n", "*", "?[a-z]", "{x}",
    "}{", "\\", "%s %b", "a" * 2000, "\0", "\u2028", "return redis.call('CONFIG','SET','dir','/')", "0 or true",
    "-nan", "1e999",
]  # fmt: skip


@pytest.fixture
def server() -> RedisServer:
    """Yield a server on a real Redis."""
    server: RedisServer = shared_servers(RedisServer)
    server.flush()
    server.ask("CONFIG", "RESETSTAT")
    server.ask("SCRIPT", "FLUSH")
    return server


def used(server: RedisServer) -> set[str]:
    """Return the commands that have run on a server."""
    return set(re.findall(r"cmdstat_([\w|]+):", server.ask("INFO", "commandstats").decode()))


@pytest.mark.server
async def test_names_and_values_never_become_redis_commands(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._stores.redis.client.SILENCE", WAIT)
    monkeypatch.setattr("millstream._stores.redis.client.PATIENCE", WAIT)
    async with open_worker(server.url) as store:
        clients = Clients(store)
        for number, evil in enumerate(EVIL):
            data = evil.encode("utf-8", "surrogatepass")
            for key in (f"session:{evil}", f"kind:{evil}", evil):
                await store.kv.put(key, data, TTL)
                assert await store.kv.get(key) == data
                assert key in await store.kv.keys(key)
                assert await store.kv.compare_and_set(key, data, None, TTL)
            await append(store, f"hub:{evil}", data)
            assert [each.data for each in await store.log.read(f"hub:{evil}", None)] == [data]
            await clients.join(evil, evil)
            assert await clients.on(evil) == [evil]
            charges = [RateCharge(evil, 5, 60), Quota(evil, 5, store.time() + 60), ConcurrencySlot(evil, 5, evil)]
            assert {taken.wait for taken in await store.charge(charges)} == {0.0}
            await store.release([ConcurrencySlot(evil, 5, evil)])
            await store.bus.publish(f"{number}{evil}", data)
    ran = used(server)
    assert not ran & {"flushall", "flushdb", "config|set", "debug", "shutdown", "module|load", "slaveof", "replicaof"}
    scripts = int(re.findall(r"number_of_cached_scripts:(\d+)", server.ask("INFO", "memory").decode())[0])
    assert 0 < scripts <= len(list(LUA.glob("*.lua")))


def test_redis_scripts_are_constant_files() -> None:
    for path in LUA.glob("*.lua"):
        text = re.sub(r"--.*", "", path.read_text("utf-8"))
        assert not re.search(r"\b(load|loadstring|dofile|require|setfenv|getmetatable|cjson|cmsgpack)\b", text), (
            path.name
        )
        for name in re.findall(r"redis\.p?call\(([^,)]*)", text):
            assert re.fullmatch(r"'[A-Z]+'", name), f"{path.name}: {name}"
    source = (LUA.parent / "keys.py").read_text("utf-8")
    assert re.findall(r"_FOLDER / ([^)]*)\)", source) == ['"shared.lua"', 'f"{name}.lua"']


@pytest.mark.server
async def test_documented_redis_user_is_limited_to_its_keys(server: RedisServer) -> None:
    page = (ROOT / "docs" / "guides" / "stores.md").read_text("utf-8")
    rights = page.partition("ACL SETUSER millstream on >PASSWORD ")[2].partition("```")[0].split()
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", *rights)
    for command in ("FLUSHALL", "CONFIG SET dir /", "SHUTDOWN", "DEBUG SLEEP 1", "KEYS *", "GET other:key",
                    "MODULE LOAD /x.so", "SCRIPT FLUSH", "ACL LIST", "REPLICAOF 127.0.0.1 1",
                    "SET other:key 1"):  # fmt: skip
        assert server.ask("ACL", "DRYRUN", "millstream", *command.split(" ")) != b"OK", command
    assert server.ask("ACL", "DRYRUN", "millstream", "GET", "millstream:{j0}:k:a") == b"OK"


def test_page_lists_the_fixed_redis_releases() -> None:
    page = (ROOT / "docs" / "guides" / "stores.md").read_text("utf-8")
    assert {"7.2.11", "7.4.6", "8.0.4", "8.2.2", "8.1.4"} <= set(re.findall(r"\d\.\d\.\d+", page))
