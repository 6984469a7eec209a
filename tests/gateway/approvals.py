"""A shop whose calls other people approve, and a gateway to it whose workers share a store."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from behavior.exchanges import Exchange
from fleet import EventStream, Worker, fleet, real_fleet
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import Context, Server, Settings, auth
from millstream.gateway import ApprovalPolicy, ToolPolicy, UpstreamPolicy
from patience import WAIT
from shared_store import SharedStore
from store_parts import Backing
from wire import Json, per_request, routing


def person(subject: str, *groups: str) -> str:
    """Return the token of a person."""
    return token(claims(sub=subject, groups=list(groups)))


ADA, BOB = person("ada"), person("bob")
MEG, MAX = person("meg", "managers"), person("max", "managers")
KEY = "a-key-that-the-operator-named-meg"
SHARED = "a-key-that-many-people-have-and-use"
BY = ApprovalPolicy(by=("group:managers",))
RULES = UpstreamPolicy(tools={"*": ToolPolicy(approve=BY)})
LIST = "approvals:pending"
FORM = "application/x-www-form-urlencoded"
PAGE = {"accept": "text/html", "content-type": FORM, "host": "127.0.0.1", "origin": "http://127.0.0.1"}


def ask(**options: Any) -> UpstreamPolicy:
    """Return a policy with a rule."""
    return UpstreamPolicy(tools={"*": ToolPolicy(approve=ApprovalPolicy(**{"by": ("group:managers",), **options}))})


class Shop:
    """An upstream that records what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.release = asyncio.Event()
        self.release.set()
        self.server = Server("shop")
        self.server.tool(self.refund)
        self.server.tool(self.wrap)

    async def refund(self, order: str, note: str = "") -> str:
        """Pay back an order."""
        self.calls.append(order)
        await self.release.wait()
        return f"refunded {order}"

    async def wrap(self, order: str, ctx: Context) -> str:
        """Ask for the paper."""
        self.calls.append(f"{order} in {await ctx.elicit('Which paper?', str)}")
        return self.calls[-1]

    def front(self, policy: UpstreamPolicy = RULES, *, settings: Mapping[str, Any] = {}, **options: Any) -> Server:
        """Return a gateway to it."""
        methods = (
            auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set()),
            auth.keys(SHARED, named_keys={"meg": KEY, **options.pop("keys", {})}),
        )
        server = Server(
            "front",
            auth=methods,
            serve=options.pop("serve", ""),
            middleware=options.pop("middleware", ()),
            settings=Settings(**{"secret_key": "k" * 40, **settings}),
        )
        server.upstream("s", options.pop("target", self.server), start_timeout=WAIT, policy=policy, **options)
        return server

    @asynccontextmanager
    async def workers(
        self, policy: UpstreamPolicy = RULES, count: int = 2, **options: Any
    ) -> AsyncIterator[list[Worker]]:
        """Run workers of a gateway to it, on a simulated store."""
        store = options.pop("store", None) or SharedStore()
        async with (
            asyncio.timeout(WAIT),
            self.server.running(),
            fleet(lambda: self.front(policy, **options), count, store=store) as workers,
        ):
            yield workers

    @asynccontextmanager
    async def stored(
        self, backing: Backing, policy: UpstreamPolicy = RULES, **options: Any
    ) -> AsyncIterator[list[Worker]]:
        """Run two workers of a gateway to it, on a real store."""
        async with (
            asyncio.timeout(WAIT),
            self.server.running(),
            real_fleet(lambda: self.front(policy, **options), backing, 2) as workers,
        ):
            yield workers


async def send(worker: Worker, who: str = ADA, order: str = "7", tool: str = "s_refund", **members: Any) -> Json:
    """Return the result of a call in the per-request era."""
    arguments = members.pop("arguments", {"order": order})
    message = per_request("tools/call", {"name": tool, "arguments": arguments, **members}, elicitation={"form": {}})
    reply = await worker.post(message, {**routing("tools/call", tool), "authorization": f"Bearer {who}"})
    last = (await EventStream(reply).end())[-1] if reply.streaming else json.loads(await reply.body())
    found: Json = last.get("result") or {"content": [{"text": last["error"]["message"]}]}
    return found


def text(result: Json) -> str:
    """Return the texts of a result."""
    return "\n".join(each["text"] for each in result["content"])


def id_in(result: Json) -> str:
    """Return the id of the request that a call waits for."""
    found = re.search(r"Its request is (\w+)\.", text(result))
    assert found, result
    return found[1]


async def collect(worker: Worker, id: str, who: str = ADA, **members: Any) -> Json:
    """Return the result of a call of `get_approved_result`."""
    return await send(worker, who, tool="get_approved_result", arguments={"request": id}, **members)


async def get(worker: Worker, who: str = MEG, **headers: str) -> Exchange:
    """Request the list."""
    return await worker.http.fetch("GET", "/approvals", {"authorization": f"Bearer {who}", **headers})


async def pending(worker: Worker, who: str = MEG) -> list[Json]:
    """Return the requests that a person can answer."""
    found: list[Json] = json.loads(await (await get(worker, who)).body())["requests"]
    return found


async def answer(worker: Worker, id: str, who: str = MEG, *, approve: bool = True) -> int:
    """Answer a request, and return the status."""
    headers = {"authorization": f"Bearer {who}", "content-type": FORM}
    body = b"answer=approve" if approve else b"answer=decline"
    return (await worker.http.fetch("POST", f"/approvals/{id}", headers, body)).status
