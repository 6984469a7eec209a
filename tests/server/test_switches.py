import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app_peer import ask
from cases import for_each
from fleet import until
from http_peer import serve
from millstream import Client, Principal, Server, Settings, ToolError, auth
from millstream.protocol import BY_DATE, NEWEST
from millstream.testing import ServerError, TestClient, connect
from wire import POST, per_request, routing

REVISIONS = pytest.mark.parametrize("revision", [NEWEST.date, "2025-11-25", min(BY_DATE)])
ALICE, BOB = "key-of-alice-0123456789", "key-of-bob-0123456789"


def staff(principal: Principal | None) -> bool:
    """Return whether a user works here."""
    return principal is not None and principal.subject == "alice"


def shop(**options: Any) -> Server:
    """Return a server with disabled items and items that only some callers see."""
    mcp = Server("shop", serve="rest", settings=Settings(page_size=2), **options)

    @mcp.tool(tags=["stock"])
    async def first() -> str:
        return "first"

    @mcp.tool(tags=["stock", "beta"], visible=staff, requires={"sampling": {}})
    async def restock(copies: int) -> str:
        return f"{copies} more"

    @mcp.tool(tags=["beta"])
    async def last() -> str:
        return "last"

    @mcp.resource("shop://sales", tags=["beta"], visible=staff)
    async def sales() -> str:
        return "100"

    @mcp.resource("shop://book/{isbn}", visible=staff)
    async def book(isbn: str) -> str:
        return isbn

    @mcp.prompt(tags=["beta"], visible=staff)
    async def advise(topic: str) -> str:
        return topic

    @mcp.complete("advise", "topic")
    async def topics(value: str, arguments: dict[str, str]) -> list[str]:
        return ["books"]

    return mcp


async def names(client: TestClient, method: str = "tools/list") -> list[str]:
    """Return the names on all pages of a list."""
    found: list[str] = []
    page = await client.request(method)
    while True:
        (items,) = (value for value in page.values() if isinstance(value, list))
        found += [each.get("uriTemplate") or each.get("uri") or each["name"] for each in items]
        if "nextCursor" not in page:
            return found
        page = await client.request(method, {"cursor": page["nextCursor"]})


HIDDEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tools/call", {"name": "restock", "arguments": {"copies": "x"}}, {"name": "nothing", "arguments": {}}),
    ("prompts/get", {"name": "advise", "arguments": {}}, {"name": "nothing", "arguments": {}}),
    ("resources/read", {"uri": "shop://sales"}, {"uri": "shop://other"}),
    ("resources/read", {"uri": "shop://book/1"}, {"uri": "shop://other/1"}),
    (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "advise"}, "argument": {"name": "topic", "value": ""}},
        {"ref": {"type": "ref/prompt", "name": "nothing"}, "argument": {"name": "topic", "value": ""}},
    ),
    (
        "completion/complete",
        {"ref": {"type": "ref/resource", "uri": "shop://book/{isbn}"}, "argument": {"name": "isbn", "value": ""}},
        {"ref": {"type": "ref/resource", "uri": "shop://none/{isbn}"}, "argument": {"name": "isbn", "value": ""}},
    ),
]


@REVISIONS
@for_each("why", ["not visible", "disabled"])
async def test_hidden_items_look_like_missing_ones(revision: str, why: str) -> None:
    mcp = shop()
    if why == "disabled":
        mcp = shop()
        for item in (mcp.registry.tools, mcp.registry.prompts, mcp.registry.resources, mcp.registry.templates):
            for each in item.values():
                each.visible = None  # type: ignore[attr-defined]
        mcp.registry._touch("tools")
        for kind, name in (("tool", "restock"), ("prompt", "advise"), ("resource", "shop://sales"),
                           ("resource", "shop://book/{isbn}")):  # fmt: skip
            mcp.disable(kind, name)  # type: ignore[arg-type]
    async with connect(mcp, revision=revision) as client:
        assert await names(client) == ["first", "last"]
        for method in ("prompts/list", "resources/list", "resources/templates/list"):
            assert await names(client, method) == []
        for method, hidden, unknown in HIDDEN:
            said: list[Any] = []
            for params in (hidden, unknown):
                with pytest.raises(ServerError) as caught:
                    await client.request(method, params)
                error = str(caught.value)
                for text in ("restock", "advise", "sales", "book/1", "book/{isbn}", "other/1", "none/{isbn}", "other"):
                    error = error.replace(text, "nothing")
                said.append((type(caught.value), error))
            assert said[0] == said[1]


async def over_http(mcp: Server, key: str, method: str, **params: Any) -> Any:
    """Return the result of a 2026-07-28 request, or its error."""
    head = {**POST, **routing(method, params.get("name", ""))} | {"authorization": f"Bearer {key}"}
    body = json.dumps(per_request(method, params, sampling={})).encode()
    reply = await ask(mcp, "POST", "/mcp", body, **{name.replace("-", "_"): value for name, value in head.items()})
    message = json.loads(reply.body)
    return message.get("result") or message["error"]


async def test_conditional_lists_are_cached_per_caller() -> None:
    mcp = shop(auth=auth.keys(named_keys={"alice": ALICE, "bob": BOB}))
    async with mcp.running():
        for key, seen in ((ALICE, ["first", "restock"]), (BOB, ["first", "last"])) * 2:
            listed = await over_http(mcp, key, "tools/list")
            assert [each["name"] for each in listed["tools"]] == seen
            assert listed["cacheScope"] == "private"
        assert (await over_http(mcp, ALICE, "tools/call", name="restock", arguments={"copies": 3}))["content"][0][
            "text"
        ] == "3 more"
        refused = await over_http(mcp, BOB, "tools/call", name="restock", arguments={"copies": 3})
        assert refused["message"] == "Unknown tool: 'restock'"
        assert len(mcp.registry._pages) == 2
        for key, there in ((ALICE, True), (BOB, False)):
            head = {"authorization": f"Bearer {key}", "content_type": "application/json"}
            described = json.loads((await ask(mcp, "GET", "/openapi.json", **head)).body)
            assert ("/tools/restock" in described["paths"]) is there
            assert described["paths"]["/tools/first"]["post"]["tags"] == ["stock"]
            run = await ask(mcp, "POST", "/tools/restock", b'{"copies": 3}', **head)
            assert (run.status == 404) is not there


@REVISIONS
async def test_switching_items_notifies_clients(revision: str) -> None:
    mcp = shop()

    @mcp.tool(enabled=False)
    async def later() -> str:
        mcp.disable("tool", "first")
        return "later"

    async with connect(mcp, revision=revision) as client:
        assert await names(client) == ["first", "last"]
        mcp.enable("tool", "later")
        mcp.enable("tool", "later")
        assert await names(client) == ["first", "last", "later"]
        assert (await client.call("later")).text == "later"
        assert await names(client) == ["last", "later"]
        with pytest.raises(ServerError, match="Unknown tool"):
            await client.call("first")
        mcp.enable("tool", "first")
        assert await names(client) == ["first", "last", "later"]
        mcp.disable(tag="beta")
        assert await names(client) == ["first", "later"]
        mcp.enable(tag="beta")
        assert await names(client) == ["first", "last", "later"]
        if revision == "2025-11-25":
            heard = [each["method"] for each in client.notifications]
            assert "notifications/tools/list_changed" in heard
    mcp.remove_tool("first")
    with pytest.raises(KeyError):
        mcp.disable("tool", "first")


async def test_disabled_items_keep_their_name_completers_and_mounts() -> None:
    inner, outer = shop(), Server("outer")
    inner.disable("prompt", "advise")
    outer.mount(inner, prefix="in")
    with pytest.raises(ValueError, match="The prompt 'advise' already exists"):
        inner.prompt(name="advise")(lambda topic: topic)
    async with connect(outer) as client:
        assert await names(client) == ["in_first", "in_last"]
        inner.disable("tool", "first")
        assert await names(client) == ["in_last"]
        outer.enable("tool", "in_first")
        assert await names(client) == ["in_first", "in_last"]
        assert "in_advise" in outer.registry.disabled["prompts"]
        inner.remove_prompt("advise")
        assert outer.registry.disabled["prompts"] == {}
        assert outer.registry.completers == {}


async def test_failing_conditions_hide_their_item() -> None:
    mcp = Server("shop")

    @mcp.tool(visible=lambda principal: 1 / 0)  # type: ignore[arg-type, return-value]
    async def secret() -> str:
        raise ToolError("seen")

    async with connect(mcp) as client:
        for request in (client.request("tools/list"), client.call("secret", raise_on_error=False)):
            try:
                said = str(await request)
            except ServerError as exc:
                said = str(exc)
            assert "seen" not in said
            assert "Unknown" not in said


def changing_shop(staff: set[str], **options: Any) -> Server:
    """Return a server with a resource for its staff, which changes, and one for everyone."""
    mcp = Server("shop", serve="rest", **options)

    @mcp.resource("shop://sales", visible=lambda principal: principal is not None and principal.subject in staff)
    async def sales() -> str:
        return "100"

    @mcp.resource("shop://sign")
    async def sign() -> str:
        return "open"

    return mcp


async def updated(client: TestClient, mcp: Server, *uris: str) -> list[str]:
    """Return the resources whose updates a client receives, ending with ``shop://sign``."""
    client.notifications.clear()
    for uri in (*uris, "shop://sign"):
        await mcp.resource_updated(uri)
    await until(lambda: any(each["params"].get("uri") == "shop://sign" for each in client.notifications))
    return [each["params"]["uri"] for each in client.notifications if "uri" in each["params"]]


@REVISIONS
async def test_updates_end_when_a_resource_becomes_hidden(revision: str) -> None:
    staff = {"bob"}
    mcp = changing_shop(staff)
    async with connect(mcp, revision=revision, principal="bob") as bob, bob.watch("shop://sales", "shop://sign"):
        assert await updated(bob, mcp, "shop://sales") == ["shop://sales", "shop://sign"]
        staff.clear()
        assert await updated(bob, mcp, "shop://sales") == ["shop://sign"]
        mcp.remove_resource("shop://sales")
        mcp.resource("shop://sales", name="sales", scopes=["sales"])(lambda: "100")
        assert await updated(bob, mcp, "shop://sales") == ["shop://sign"]
        staff.add("bob")
        mcp.remove_resource("shop://sales")
        assert await updated(bob, mcp, "shop://sales") == ["shop://sales", "shop://sign"]


async def test_updates_over_http_end_when_a_resource_becomes_hidden() -> None:
    staff = {"bob"}
    mcp = changing_shop(staff, auth=auth.keys(named_keys={"alice": ALICE, "bob": BOB}))
    async with mcp.running(), serve(mcp) as running:
        url, head = f"http://127.0.0.1:{running.port}/mcp", {"authorization": f"Bearer {BOB}"}
        for revision in (NEWEST.date, "2025-11-25"):
            client = Client(url, headers=head, revision=revision)
            async with client as bob, bob.watch("shop://sales", "shop://sign") as changes:
                for mine in (["shop://sales", "shop://sign"], ["shop://sign"]):
                    await mcp.resource_updated("shop://sales")
                    await mcp.resource_updated("shop://sign")
                    assert [change.uri async for change in up_to_the_sign(changes)] == mine
                    staff.clear()
            staff.add("bob")


async def up_to_the_sign(changes: Any) -> AsyncIterator[Any]:
    """Yield changes up to that of ``shop://sign``."""
    async for change in changes:
        yield change
        if change.uri == "shop://sign":
            return


async def test_failing_conditions_for_one_caller_do_not_stop_updates_for_others() -> None:
    mcp, failing = Server("shop"), set[str]()

    @mcp.resource(
        "shop://sign",
        visible=lambda principal: (principal is not None and principal.subject not in failing) or bool(1 // 0),
    )
    async def sign() -> str:
        return "open"

    one, two = connect(mcp, principal="alice"), connect(mcp, principal="bob")
    async with one as alice, two as bob, alice.watch("shop://sign"), bob.watch("shop://sign"):
        failing.add("alice")
        assert await updated(bob, mcp) == ["shop://sign"]
        assert not alice.notifications[1:]


def test_invalid_switch_options_are_rejected() -> None:
    async def later(principal: Principal | None) -> bool:
        return False

    mcp = Server("shop")
    for options in ({"visible": later}, {"visible": True}, {"tags": "beta"}, {"enabled": "no"}):
        with pytest.raises(TypeError, match=f"{next(iter(options))} must be"):
            mcp.tool(name="x", **options)(lambda: "")  # type: ignore[call-overload]
    for arguments in ({}, {"kind": "tool"}, {"kind": "tool", "name": "a", "tag": "b"}, {"name": "a"}):
        with pytest.raises(TypeError, match="Pass either a kind and a name"):
            mcp.disable(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'tools' isn't a kind"):
        mcp.disable("tools", "a")  # type: ignore[arg-type]


def test_unconditional_lists_are_prepared_once() -> None:
    mcp = Server("plain")
    mcp.tool(name="a")(lambda: "")
    assert mcp.registry.conditional == {}
    assert mcp.registry.page("tools", NEWEST, None) is mcp.registry.page("tools", NEWEST, None)
    assert mcp.registry.tools["a"].plain
