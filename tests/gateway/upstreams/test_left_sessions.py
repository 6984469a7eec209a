"""Sessions at upstreams that a gateway leaves open when it stops, and continues when it runs again."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count, cycle
from pathlib import Path
from shutil import copytree
from tempfile import mkdtemp
from typing import Any

import httpx2
import pytest

from cases import for_each
from client.misbehaving_servers import GREETING, ReceivedRequest, misbehaving
from fleet import until
from http_peer import serve
from millstream import Server, Settings, auth
from millstream._override import override
from patience import WAIT

KEYS = {"ada": "ada-has-a-key-of-some-length", "bob": "bob-has-another-of-some-length"}
HANDSHAKE, PER_REQUEST = "2025-11-25", "2026-07-28"
THERE = "The server 'desk' behind this gateway has ended its session with you and lost its state."
HERE = "This gateway has restarted, or has closed your session with the server 'desk'"


async def refuse_404(asked: ReceivedRequest) -> None:
    await asked.reply(b"", status="404 Not Found")


class Desk:
    """A server of 2025-11-25 that keeps a value in each session."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        """Session -> value."""
        self.ids: defaultdict[str, list[object]] = defaultdict(list)
        """Session -> ids of its requests."""
        self.deleted: list[str] = []
        self.hangs = asyncio.Event()
        self.is_down = False
        self.on_forgotten: Callable[[ReceivedRequest], Awaitable[None]] = refuse_404
        self._count = 0

    async def behave(self, asked: ReceivedRequest) -> None:
        if self.is_down:
            raise ConnectionError
        session, method = asked.headers.get("mcp-session-id", ""), asked.method
        if method == "server/discover":
            await asked.error(-32601, "Method not found")
        elif method == "initialize":
            self._count += 1
            self.kept[f"s{self._count}"] = "nothing"
            await asked.result(GREETING, more=f"Mcp-Session-Id: s{self._count}\r\nSet-Cookie: node=s{self._count}\r\n")
        elif session not in self.kept:
            await self.on_forgotten(asked)
        elif asked.verb == "DELETE":
            self.deleted.append(session)
            del self.kept[session]
            await asked.reply(b"")
        elif asked.verb == "GET":
            await asked.reply(b"", status="405 Method Not Allowed")
        elif method.startswith("notifications/"):
            await asked.reply(b"", status="202 Accepted")
        else:
            assert asked.headers["cookie"] == f"node={session}"
            self.ids[session].append(asked.message["id"])
            await self._answer(asked, session)

    async def _answer(self, asked: ReceivedRequest, session: str) -> None:
        if asked.method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("keep", "read", "hang")]
            await asked.result({"tools": tools})
        elif asked.method == "tools/call":
            params = asked.message["params"]
            if params["name"] == "hang":
                self.hangs.set()
                await asyncio.Event().wait()
            self.kept[session] = params.get("arguments", {}).get("value", self.kept[session])
            await asked.result({"content": [{"type": "text", "text": self.kept[session]}]})
        else:
            await asked.result({})


class Caller:
    """A caller of a revision, with one session at the gateway if the revision has them."""

    def __init__(self, revision: str, name: str = "ada") -> None:
        self._is_newer = revision == PER_REQUEST
        self.headers = {
            "accept": "application/json, text/event-stream", "mcp-protocol-version": revision,
            "authorization": f"Bearer {KEYS[name]}",
        }  # fmt: skip
        self.url = ""

    async def connect(self, url: str) -> "Caller":
        self.url = url
        if not self._is_newer and "mcp-session-id" not in self.headers:
            client = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            reply = await self.post("initialize", client)
            self.headers["mcp-session-id"] = reply.headers["mcp-session-id"]
        return self

    async def post(self, method: str, params: dict[str, Any]) -> httpx2.Response:
        named = {"mcp-method": method} | ({"mcp-name": params["name"]} if "name" in params else {})
        if self._is_newer:
            meta = {"protocolVersion": PER_REQUEST, "clientCapabilities": {}}
            client = {"clientInfo": {"name": "t", "version": "1"}}
            params = params | {
                "_meta": {f"io.modelcontextprotocol/{key}": each for key, each in (meta | client).items()}
            }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            return await http.post(self.url, json=message, headers=self.headers | named)

    async def call(self, tool: str, **arguments: str) -> str:
        reply = await self.post("tools/call", {"name": tool, "arguments": arguments})
        text = reply.text.rpartition("data: ")[2]
        found = json.loads(text)
        return str(found["result"]["content"][0]["text"] if "result" in found else found["error"]["message"])


@asynccontextmanager
async def run(folder: Path, desk_url: str, *callers: Caller, prefix: str = "", **options: Any) -> AsyncIterator[None]:
    """Run the gateway until the block ends, with a store that outlives it, and connect callers."""
    settings = Settings(secret_key="a secret that is long enough for tests", drain_timeout=0.1)
    mcp = Server("front", auth=auth.keys(named_keys=KEYS), store=f"sqlite:///{folder}/gateway.db", settings=settings)
    mcp.upstream("desk", desk_url, **{"prefix": prefix, "start_timeout": WAIT, "timeout": WAIT, **options})
    async with mcp.running(), serve(mcp) as front:
        for caller in callers:
            await caller.connect(f"http://127.0.0.1:{front.port}/mcp")
        yield


KINDS = [(PER_REQUEST, ""), (PER_REQUEST, "desk"), (HANDSHAKE, ""), (HANDSHAKE, "desk")]
"""Revision of the caller, and prefix, which is empty in a relay."""


@for_each(("revision", "prefix"), KINDS)
async def test_each_callers_session_goes_on_with_new_request_ids(tmp_path: Path, revision: str, prefix: str) -> None:
    desk, ada, bob, tool = Desk(), Caller(revision), Caller(revision, "bob"), f"{prefix}_" if prefix else ""
    async with misbehaving(desk.behave) as behind:
        async with run(tmp_path, behind.url, ada, bob, prefix=prefix):
            for who, value in ((ada, "Ada's"), (bob, "Bob's")):
                assert await who.call(f"{tool}keep", value=value) == value
            hanging = asyncio.create_task(ada.call(f"{tool}hang"))
            async with asyncio.timeout(WAIT):
                await desk.hangs.wait()
        await asyncio.gather(hanging, return_exceptions=True)
        for _ in range(2):
            async with run(tmp_path, behind.url, ada, bob, prefix=prefix):
                assert await ada.call(f"{tool}read") == "Ada's"
                assert await bob.call(f"{tool}read") == "Bob's"
                assert await ada.call(f"{tool}read") == "Ada's"
        assert all(len(ids) == len(set(ids)) for ids in desk.ids.values())
        assert sorted(desk.kept.values()) == ["Ada's", "Bob's"]


async def hang(asked: ReceivedRequest) -> None:
    await asyncio.Event().wait()


FORGOTTEN: dict[str, Callable[[ReceivedRequest], Awaitable[None]]] = {
    "404": refuse_404,
    "400": lambda asked: asked.error(-32000, "Bad Request: No valid session ID provided", status="400 Bad Request"),
    "401": lambda asked: asked.reply(b"{}", status="401 Unauthorized"),
    "500": lambda asked: asked.reply(b"", status="500 Internal Server Error"),
    "an event that isn't JSON-RPC": lambda asked: asked.reply(
        b'event: message\ndata: {"error":"Session not found"}\n\n', type="text/event-stream"
    ),
    "an empty body": lambda asked: asked.reply(b""),
    "an error": lambda asked: asked.error(-32600, "Session terminated"),
    "202": lambda asked: asked.reply(b"", status="202 Accepted"),
    "302": lambda asked: asked.reply(b"", status="302 Found", more="Location: /login\r\n"),
    "an internal error": lambda asked: asked.error(-32603, "Internal error"),
    "a web page": lambda asked: asked.reply(b"<html></html>", type="text/html"),
    "an empty stream": lambda asked: asked.reply(b"", type="text/event-stream"),
}


async def test_session_that_an_upstream_forgot_in_the_meantime_is_reported_once(tmp_path: Path) -> None:
    for (revision, prefix), how in zip(cycle(KINDS), FORGOTTEN, strict=False):
        desk, ada, tool = Desk(), Caller(revision), f"{prefix}_" if prefix else ""
        desk.on_forgotten = FORGOTTEN[how]
        folder = Path(mkdtemp(dir=tmp_path))
        async with misbehaving(desk.behave) as behind:
            async with run(folder, behind.url, ada, prefix=prefix):
                await ada.call(f"{tool}keep", value="Ada's")
            desk.kept.clear()
            async with run(folder, behind.url, ada, prefix=prefix):
                if revision == HANDSHAKE:  # clients end their session if its ping fails
                    assert (await ada.post("ping", {})).status_code == 200
                    assert (await ada.post("tools/list", {})).status_code == 200
                texts = [await ada.call(f"{tool}read") for _ in range(3)]
                assert THERE in texts[0], (revision, prefix, texts)
                assert texts[1:] == ["nothing"] * 2


async def test_relay_repeats_what_changed_a_session_in_the_next_one(tmp_path: Path) -> None:
    desk, ada = Desk(), Caller(HANDSHAKE)
    uris = [f"desk://{number}" for number in range(4)]
    async with misbehaving(desk.behave) as behind, run(tmp_path, behind.url, ada):
        for uri in (*uris, uris[2]):
            assert (await ada.post("resources/subscribe", {"uri": uri})).status_code == 200
        assert (await ada.post("resources/subscribe", {"uri": "desk://" + "x" * 20_000})).status_code == 200
        for uri in (uris[0], "desk://never"):
            assert (await ada.post("resources/unsubscribe", {"uri": uri, "_meta": {"a": 1}})).status_code == 200
        for level in ("error", "info"):
            assert (await ada.post("logging/setLevel", {"level": level})).status_code == 200
        for _ in range(2):
            desk.kept.clear()
            assert THERE in await ada.call("read")
            behind.requests.clear()
            assert await ada.call("read") == "nothing"
            said = [each.message for each in behind.requests if each.verb == "POST"]
            again = [
                (each["method"], *each["params"].values()) for each in said if each["method"][:3] in ("res", "log")
            ]
            kept = [("resources/subscribe", uri) for uri in uris[1:]]
            assert sorted(again) == [("logging/setLevel", "info"), *kept]


@for_each("prefix", ["", "desk"])
async def test_pings_and_lists_do_not_use_up_the_word_that_a_session_was_lost(tmp_path: Path, prefix: str) -> None:
    desk, ada, tool = Desk(), Caller(HANDSHAKE), f"{prefix}_" if prefix else ""
    async with misbehaving(desk.behave) as behind, run(tmp_path, behind.url, ada, prefix=prefix):
        for methods in (), ("ping",), ("tools/list",), ("ping", "tools/list", "ping"):
            await ada.call(f"{tool}keep", value="Ada's")
            desk.kept.clear()
            for method in methods:
                reply = await ada.post(method, {})
                assert (reply.status_code, '"result"' in reply.text) == (200, True), (methods, reply.text)
            texts = [await ada.call(f"{tool}read") for _ in range(3)]
            assert THERE in texts[0], (methods, texts)
            assert texts[1:] == ["nothing"] * 2, (methods, texts)
        for methods in ("ping", "ping"), ("ping", "tools/list", "ping"):  # at the same time
            for _ in range(2):  # a second loss before a call
                await asyncio.gather(*(ada.post(method, {}) for method in methods))
                desk.kept.clear()
                await asyncio.gather(*(ada.post(method, {}) for method in methods))
            texts = [await ada.call(f"{tool}read") for _ in range(3)]
            assert THERE in texts[0], (methods, texts)
            assert texts[1:] == ["nothing"] * 2, (methods, texts)


async def test_lost_session_is_told_after_a_restart_if_only_a_ping_has_noticed_it(tmp_path: Path) -> None:
    desk, ada = Desk(), Caller(HANDSHAKE)
    async with misbehaving(desk.behave) as behind:
        async with run(tmp_path, behind.url, ada):
            await ada.call("keep", value="Ada's")
            desk.kept.clear()
            assert (await ada.post("ping", {})).status_code == 200
        async with run(tmp_path, behind.url, ada):
            assert "has lost its state" in await ada.call("read")
            assert await ada.call("read") == "nothing"


async def test_lost_session_is_told_after_a_restart_if_the_upstream_could_not_be_reached(tmp_path: Path) -> None:
    for revision, prefix in KINDS:
        desk, ada, tool = Desk(), Caller(revision), f"{prefix}_" if prefix else ""
        folder = Path(mkdtemp(dir=tmp_path))
        async with misbehaving(desk.behave) as behind:
            async with run(folder, behind.url, ada, prefix=prefix):
                await ada.call(f"{tool}keep", value="Ada's")
                crashed = copytree(folder, folder / "crashed")
            desk.is_down = True
            async with run(crashed, behind.url, ada, prefix=prefix, start_timeout=0.01):
                assert await ada.call(f"{tool}read") != "nothing"
            desk.is_down = False
            async with run(crashed, behind.url, ada, prefix=prefix):
                assert "has lost its state" in await ada.call(f"{tool}read"), (revision, prefix)
                assert await ada.call(f"{tool}read") == "nothing"


async def test_session_that_an_upstream_forgets_is_replaced_after_a_few_failures_and_reported_once(
    tmp_path: Path,
) -> None:
    for (revision, prefix), how in zip(cycle(KINDS), [*FORGOTTEN, "no response"], strict=False):
        desk, ada, tool = Desk(), Caller(revision), f"{prefix}_" if prefix else ""
        desk.on_forgotten = FORGOTTEN.get(how, hang)
        seconds = {"timeout": 2.0, "connect_timeout": 2.0} if how == "no response" else {}
        folder = Path(mkdtemp(dir=tmp_path))
        async with misbehaving(desk.behave) as behind, run(folder, behind.url, ada, prefix=prefix, **seconds):
            await ada.call(f"{tool}keep", value="Ada's")
            desk.kept.clear()
            text = ""
            async with asyncio.timeout(WAIT):
                while "state" not in text:
                    text = await ada.call(f"{tool}read")
                    assert text != "nothing", (revision, prefix, how)
            async with asyncio.timeout(WAIT):
                while "wasn't sent" in (text := await ada.call(f"{tool}read")):
                    pass
            assert text == "nothing", (revision, prefix, how)


async def test_session_goes_on_after_an_upstream_could_not_be_reached(tmp_path: Path) -> None:
    for revision, prefix in KINDS:
        desk, ada, tool = Desk(), Caller(revision), f"{prefix}_" if prefix else ""
        folder = Path(mkdtemp(dir=tmp_path))
        async with misbehaving(desk.behave) as behind:
            async with run(folder, behind.url, ada, prefix=prefix):
                await ada.call(f"{tool}keep", value="Ada's")
            desk.is_down = True
            async with run(folder, behind.url, ada, prefix=prefix, start_timeout=0.01):
                text = await ada.call(f"{tool}read")
                assert "Ada's" not in text
                assert "state" not in text
                desk.is_down = False
                async with asyncio.timeout(WAIT):
                    while (text := await ada.call(f"{tool}read")) != "Ada's":
                        assert "state" not in text


async def cut_off(asked: ReceivedRequest) -> None:
    raise ConnectionError


FAULTS: dict[str, Callable[[ReceivedRequest], Awaitable[None]]] = {
    "a closed connection": cut_off,
    "403": lambda asked: asked.reply(b"", status="403 Forbidden"),
} | {how: FORGOTTEN[how] for how in ("500", "302", "an internal error", "an empty body")}


async def test_session_goes_on_after_one_fault_of_an_upstream(tmp_path: Path) -> None:
    for (revision, prefix), how in zip(KINDS * 2, [*FAULTS, "a closed connection", "500"], strict=True):
        desk, ada, tool, cut = Desk(), Caller(revision), f"{prefix}_" if prefix else "", list[str]()

        async def behave(asked: ReceivedRequest, desk: Desk = desk, cut: list[str] = cut, how: str = how) -> None:
            if asked.method == "ping" and not cut:
                cut.append(asked.headers["mcp-session-id"])
                await FAULTS[how](asked)
            else:
                await desk.behave(asked)

        folder = Path(mkdtemp(dir=tmp_path))
        async with misbehaving(behave) as behind:
            async with run(folder, behind.url, ada, prefix=prefix):
                await ada.call(f"{tool}keep", value="Ada's")
            async with run(folder, behind.url, ada, prefix=prefix):
                assert await ada.call(f"{tool}read") == "Ada's"
        assert [desk.kept[each] for each in cut] == ["Ada's"]


async def test_session_that_no_caller_continues_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, ada, bob = Desk(), Caller(PER_REQUEST), Caller(HANDSHAKE, "bob")
    async with misbehaving(desk.behave) as behind:
        async with run(tmp_path, behind.url, ada, bob, prefix="desk"):
            await ada.call("desk_keep", value="Ada's")
            await bob.call("desk_keep", value="Bob's")
        assert sorted(desk.kept.values()) == ["Ada's", "Bob's"]
        for place in ("part", "upstreams.links"):
            monkeypatch.setattr(f"millstream._gateway.{place}.LEFT_SECONDS", 0.0)
        async with run(tmp_path, behind.url, ada, bob, prefix="desk"):
            await until(lambda: not {"Ada's", "Bob's"} & set(desk.kept.values()))
            for who in (ada, bob):
                assert HERE in await who.call("desk_read")
                assert await who.call("desk_read") == "nothing"


class OneByOne(Desk):
    """A server that handles the requests of a session one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.release = asyncio.Event()
        self.pings = 0

    @override
    async def _answer(self, asked: ReceivedRequest, session: str) -> None:
        self.pings += asked.method == "ping" and self.locks[session].locked()
        async with self.locks[session]:
            if asked.method != "tools/call" or asked.message["params"]["name"] != "hang":
                await super()._answer(asked, session)
                return
            self.hangs.set()
            await asked.stream()
            token = asked.message["params"]["_meta"]["progressToken"]
            for progress in count():
                await asked.say("notifications/progress", {"progressToken": token, "progress": progress})
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.release.wait(), 0.1)
                    break
            await asked.event(asked.answer({"content": [{"type": "text", "text": self.kept[session]}]}))
            await asked.end()


async def test_session_that_reports_progress_of_a_call_is_kept_although_it_answers_no_other_request(
    tmp_path: Path,
) -> None:
    desk, ada = OneByOne(), Caller(HANDSHAKE)
    async with (
        asyncio.timeout(WAIT), misbehaving(desk.behave) as behind,
        run(tmp_path, behind.url, ada, prefix="desk", timeout=2.0, connect_timeout=2.0)
    ):  # fmt: skip
        await ada.call("desk_keep", value="Ada's")
        call = {"name": "desk_hang", "arguments": {}, "_meta": {"progressToken": 5}}
        hanging = asyncio.create_task(ada.post("tools/call", call))
        await desk.hangs.wait()
        while desk.pings < 3 and not hanging.done():
            await asyncio.gather(*(ada.call("desk_read") for _ in range(3)))
        desk.release.set()
        assert '"text": "Ada\'s"' in (await hanging).text
        assert await ada.call("desk_keep") == "Ada's"


async def test_session_that_becomes_too_old_later_is_ended_by_a_later_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, ada, bob = Desk(), Caller(PER_REQUEST), Caller(PER_REQUEST, "bob")
    async with misbehaving(desk.behave) as behind:
        async with run(tmp_path, behind.url, ada, prefix="desk"):
            await ada.call("desk_keep", value="Ada's")
        monkeypatch.setattr("millstream._gateway.part.LEFT_SECONDS", 0.0)
        async with run(tmp_path, behind.url, ada, bob, prefix="desk"):
            assert await bob.call("desk_read") == "nothing"
            assert "Ada's" in desk.kept.values()  # the checks so far found it too young
            monkeypatch.setattr("millstream._gateway.upstreams.links.LEFT_SECONDS", 0.0)
            await until(lambda: "Ada's" not in desk.kept.values())


async def test_resumed_session_has_its_stream_and_the_headers_of_its_caller(tmp_path: Path) -> None:
    for revision, prefix in KINDS:
        desk, ada, tool = Desk(), Caller(revision), f"{prefix}_" if prefix else ""
        ada.headers["x-team"] = "blue"
        options: dict[str, Any] = {"prefix": prefix, "forward_headers": ["x-team"]}
        folder = Path(mkdtemp(dir=tmp_path))
        async with misbehaving(desk.behave) as behind:
            async with run(folder, behind.url, ada, **options):
                await ada.call(f"{tool}keep", value="Ada's")
            session = next(each for each, value in desk.kept.items() if value == "Ada's")
            behind.requests.clear()
            async with run(folder, behind.url, ada, **options):
                assert await ada.call(f"{tool}read") == "Ada's"
                own = [each for each in behind.requests if each.headers.get("mcp-session-id") == session]
                assert {each.verb for each in own} == {"GET", "POST"}
                assert all(each.headers.get("x-team") == "blue" for each in own)


async def test_callers_share_sessions_of_an_upstream_that_keeps_nothing_and_hear_of_no_loss(tmp_path: Path) -> None:
    for revision, prefix in KINDS:
        desk, ada, bob = Desk(), Caller(revision), Caller(revision, "bob")
        tool, folder = f"{prefix}_" if prefix else "", Path(mkdtemp(dir=tmp_path))
        async with misbehaving(desk.behave) as behind:
            for _ in range(2):
                async with run(folder, behind.url, ada, bob, prefix=prefix, keeps_state=False):
                    for lost in (False, True):
                        if lost:
                            desk.kept.clear()
                        assert await ada.call(f"{tool}keep", value="Ada's") == "Ada's"
                        assert await bob.call(f"{tool}read") == "Ada's"
                        assert len(desk.kept) <= 2  # one for the lists
