"""Values that functions keep for a user: who shares them, in which revisions, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from http_peer import serve
from millstream import Client, Context, Principal, Server, Settings, SyncContext, auth, testing
from millstream.client import ServerError, ToolFailed
from patience import WAIT

PEOPLE = {"ada": "ada-has-a-key-of-some-length", "bob": "bob-has-another-of-some-length"}
REVISIONS = ("2025-06-18", "2025-11-25", "2026-07-28")


def make_server(store: str, people: Mapping[str, str] | None) -> Server:
    guard = auth.keys(named_keys=people) if people else None
    mcp = Server("keeps", auth=guard, settings=Settings(store=store, secret_key="a secret of the tests that is long"))

    @mcp.tool
    async def add(title: str, ctx: Context) -> list[str]:
        titles: list[str] = await ctx.user_state.update("titles", lambda old: [*old, title], [])
        return titles

    @mcp.tool
    def show(ctx: SyncContext) -> list[str]:
        titles: list[str] = ctx.user_state.get("titles", [])
        return titles

    @mcp.tool
    async def clear(ctx: Context) -> bool:
        await ctx.user_state.delete("titles")
        return bool(ctx.user_state)

    @mcp.tool
    async def fill(ctx: Context) -> None:
        await ctx.user_state.set("large", "x" * 64 * 1024)

    return mcp


@asynccontextmanager
async def running(store: str = "memory://", people: Mapping[str, str] | None = PEOPLE) -> AsyncIterator[str]:
    mcp = make_server(store, people)
    async with mcp.running(), serve(mcp) as front:
        yield f"http://127.0.0.1:{front.port}/mcp"


def connect(url: str, person: str = "", revision: str = REVISIONS[-1]) -> Client:
    headers = {"authorization": f"Bearer {PEOPLE[person]}"} if person else {}
    return Client(url, headers=headers, revision=revision, timeout=WAIT)


async def show(client: Client) -> list[str]:
    return await client.call("show", result_type=list[str])


async def test_user_has_the_same_values_in_every_revision_and_nobody_else_has_them() -> None:
    async with running() as url:
        for number, revision in enumerate(REVISIONS, 1):
            async with connect(url, "ada", revision) as ada, connect(url, "bob", revision) as bob:
                assert len(await ada.call("add", title=revision, result_type=list[str])) == number
                assert await show(ada) == list(REVISIONS[:number])
                assert await show(bob) == []
        async with connect(url, "ada") as ada:
            await ada.call("clear")
            assert await show(ada) == []


async def test_programs_of_one_person_share_the_values() -> None:
    mcp = make_server("memory://", None)
    async with (
        testing.connect(mcp, principal=Principal("ada", "https://id.example.com", "editor")) as one,
        testing.connect(mcp, principal=Principal("ada", "https://id.example.com", "assistant")) as other,
        testing.connect(mcp, principal=Principal("ada", "https://other.example.com", "editor")) as namesake,
        testing.connect(mcp, principal=Principal("ada", "https://id.example.com", "ada")) as machine,
    ):
        await one.call("add", title="Momo")
        assert [await show(each) for each in (one, other, namesake, machine)] == [["Momo"], ["Momo"], [], []]


async def test_key_and_a_person_with_its_name_do_not_share_the_values() -> None:
    """A method of one's own may name no issuer, as keys don't."""
    mcp = make_server("memory://", None)
    async with (
        testing.connect(mcp, principal=Principal("ada", client="ada")) as key,
        testing.connect(mcp, principal=Principal("ada")) as person,
    ):
        await key.call("add", title="Momo")
        assert [await show(each) for each in (key, person)] == [["Momo"], []]


async def test_concurrent_changes_are_all_kept() -> None:
    async with running() as url, connect(url, "ada") as one, connect(url, "ada", REVISIONS[0]) as other:
        await asyncio.gather(*(client.call("add", title=str(n)) for n in range(15) for client in (one, other)))
        assert sorted(await show(one), key=int) == sorted([str(n) for n in range(15)] * 2, key=int)


async def test_values_survive_a_restart_with_a_store_that_does(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'kept.db'}"
    async with running(store) as url, connect(url, "ada") as ada:
        await ada.call("add", title="Momo")
    async with running(store) as url, connect(url, "ada") as ada, connect(url, "bob") as bob:
        assert (await show(ada), await show(bob)) == (["Momo"], [])


@pytest.mark.parametrize("revision", REVISIONS)
async def test_caller_without_sign_in_has_none(revision: str) -> None:
    async with running(people=None) as url, connect(url, revision=revision) as client:
        for tool, arguments in (("add", {"title": "Momo"}), ("show", {}), ("clear", {})):
            with pytest.raises(ToolFailed, match="aren't signed in"):
                await client.call(tool, arguments)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_only_client_in_memory_is_the_user(revision: str) -> None:
    async with Client(make_server("memory://", None), revision=revision) as client:
        await client.call("add", title="Momo")
        assert await show(client) == ["Momo"]
        assert await client.call("clear", result_type=bool)


async def test_values_are_bounded() -> None:
    async with running() as url, connect(url, "ada") as ada:
        await ada.call("add", title="Momo")
        with pytest.raises(ServerError):
            await ada.call("fill")
        assert await show(ada) == ["Momo"]
