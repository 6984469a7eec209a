"""What a Redis may not do for us, by its ACL or its configuration, shows at the start, with what to do about it."""

import re
from pathlib import Path

import pytest

from millstream._protocol.errors import LocalError
from millstream._stores.redis import scripts
from processes import ROOT
from redis_parts import RedisServer, opened, until
from store_parts import Follower, append

pytestmark = pytest.mark.server
STREAM = "hub:journal"
LUA = Path(scripts.__file__).parent / "lua"
ONLY_IN_CLUSTERS = {"asking", "cluster|slots"}
BEFORE_SCRIPTS = {"auth", "select", "client|setname", "client|id", "info", "eval", "evalsha"}
"""The greeting needs them, or the check itself."""


def documented() -> set[str]:
    """The commands of the page."""
    page = (ROOT / "docs/how-to/use-redis.md").read_text("utf-8")
    return set(re.findall(r"\+([a-z|]+)", page.partition("-@all")[2].partition("```")[0]))


def checked() -> list[str]:
    """The commands that are looked at when a store opens."""
    table = (LUA / "may.lua").read_text("utf-8").partition("needed = {")[2].partition("\n}")[0]
    return re.findall(r"\{'([A-Z]+)'", table)


async def error_of(url: str) -> str:
    with pytest.raises(LocalError) as refused:
        async with opened(url):
            pass
    return str(refused.value)


def test_every_command_that_a_script_uses_is_documented_and_looked_at() -> None:
    """A new one mustn't break those who gave Millstream a user of its own."""
    used = {
        name for file in LUA.glob("*.lua") for name in re.findall(r"redis\.p?call\('([A-Z]+)'", file.read_text("utf-8"))
    }
    assert used <= set(checked())
    assert {name.lower().replace("client", "client|unblock") for name in checked()} == documented() - BEFORE_SCRIPTS


@pytest.mark.parametrize("name", sorted(documented() - {"auth", "select"}))
async def test_a_forbidden_command_shows_at_the_start_under_its_name(server: RedisServer, name: str) -> None:
    """Fixed defect: it showed with the first event, as the digest of a script; without XREAD nobody heard anything, and
    nothing said so.
    """
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", "~millstream:*", "+@all", f"-{name}")
    error = await error_of(f"redis://millstream:secret@127.0.0.1:{server.port}")
    assert name.replace("|", " ") in error.lower().replace("|", " ")
    assert "ACL SETUSER" in error


@pytest.mark.parametrize("name", ["XREAD", "UNLINK", "EVALSHA", "CLIENT"])
async def test_a_command_that_was_renamed_shows_at_the_start_under_its_name(name: str) -> None:
    """Some services do that."""
    server = RedisServer("--rename-command", name, "")
    try:
        error = await error_of(server.url)
        assert name in error
        assert "rename-command" in error
    finally:
        server.close()


async def test_a_worker_that_may_not_read_any_more_says_so_once_and_hears_everything_when_it_may(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Fixed defect: five lines a second."""
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", "~millstream:*", "+@all")
    async with opened(f"redis://millstream:secret@127.0.0.1:{server.port}") as store:
        follower = Follower(store, STREAM)
        await append(store, STREAM, b"before")
        await follower.until(b"before")
        server.ask("ACL", "SETUSER", "millstream", "-xread")
        caplog.clear()
        await append(store, STREAM, b"meanwhile")
        await until(lambda: store._reader.refusals > 4)
        server.ask("ACL", "SETUSER", "millstream", "+xread")
        await follower.until(b"meanwhile")
        await append(store, STREAM, b"after")
        await follower.until(b"after")
        assert not follower.told
        await follower.close()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    begun = [text for text in said if text.startswith("Redis refuses to be read, which is tried again: NOPERM")]
    assert len(begun) == 1
    assert said.count("Redis lets itself be read again.") == 1


async def test_a_user_that_may_not_touch_the_keys_of_millstream_is_refused(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", "~other:*", "+@all")
    error = await error_of(f"redis://millstream:secret@127.0.0.1:{server.port}")
    assert "keys" in error
    assert "ACL SETUSER" in error


async def test_a_url_without_the_password_that_is_needed_says_how_to_write_it(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "requirepass", "secret")
    assert "redis://USER:PASSWORD@HOST" in await error_of(server.url)


async def test_a_database_that_is_not_there_is_named(server: RedisServer) -> None:
    assert "database" in await error_of(f"{server.url}/99")
