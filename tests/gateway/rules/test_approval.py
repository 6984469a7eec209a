"""ApprovalPolicy of tool calls by the person at the client."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from cases import for_each
from cpu import DEAR_TEXT, check_linear, repeat
from fleet import EventStream, Worker, fleet
from growth import MIB
from millstream import Client, Context, Server, Settings, ToolError, auth
from millstream._gateway.rules.approval import _matches_values, _word_question
from millstream.client import ServerError, ToolFailed
from millstream.extensions import Extension, SavedCall
from millstream.gateway import ApprovalPolicy, OpenApi, ToolPolicy, UpstreamPolicy
from millstream.items import ItemSource, Tool
from millstream.protocol import BY_DATE, TASKS, ClientInfo
from patience import WAIT
from shared_store import SharedStore
from wire import Json, ask_asgi, encode_headers, per_request, routing

ASKING = ["2025-06-18", "2025-11-25", "2026-07-28"]
YES: Json = {"action": "accept"}
ADA, BOB = "ada-has-a-key-of-some-length", "bob-has-another-of-some-length"
APPROVED = UpstreamPolicy(tools={"*": ToolPolicy(approve=True)})


class Shop:
    """An upstream that records what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.server = Server("shop")
        self.server.tool(self.order)
        self.server.tool(self.wrap)
        self.server.tool(self.look, annotations={"readOnlyHint": True})
        self.server.tool(self.tidy, annotations={"destructiveHint": False})

    async def order(self, book: str, account: str = "own", copies: int = 1, api_key: str = "") -> str:
        """Order a book."""
        self.calls.append((book, account, copies))
        return f"ordered {book}"

    async def wrap(self, book: str, ctx: Context) -> str:
        """Ask for the paper."""
        paper = await ctx.elicit("Which paper?", str)
        self.calls.append(paper)
        return f"{book} in {paper}"

    async def look(self, path: str = "/") -> str:
        """Look at a shelf."""
        self.calls.append(path)
        return f"looked at {path}"

    async def tidy(self) -> str:
        """Tidy the shelves."""
        self.calls.append("tidied")
        return "tidied"

    def front(self, policy: UpstreamPolicy = APPROVED, *, revision: str | None = None, **options: Any) -> Server:
        """Return a gateway to it."""
        settings = {"secret_key": "a secret of the tests that is long enough", **options.pop("settings", {})}
        front = Server("front", settings=Settings(**settings), **options)
        front.upstream("s", self.server, start_timeout=WAIT, revision=revision, policy=policy)
        return front

    @asynccontextmanager
    async def workers(
        self, policy: UpstreamPolicy = APPROVED, count: int = 2, **options: Any
    ) -> AsyncIterator[list[Worker]]:
        """Run workers of a gateway to it."""
        async with (
            self.server.running(),
            fleet(lambda: self.front(policy, **options), count, store=SharedStore()) as workers,
        ):
            yield workers


@pytest.fixture
def shop() -> Shop:
    return Shop()


class Person:
    """Answers questions and remembers them."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def __call__(self, question: Any) -> Any:
        self.asked.append(question.message)
        return {"value": "red"} if "paper" in question.message else self.answer


async def call(client: Client, name: str, **arguments: Any) -> str:
    """Return the text of a result or error."""
    try:
        return (await client.call(name, arguments)).text
    except (ServerError, ToolFailed) as exc:
        return str(exc)


async def send(
    worker: Worker, tool: str = "s_order", then: Mapping[str, Any] = {}, key: str = "", **arguments: Any
) -> Json:
    """Return the result or error of a call in the per-request era. `then` has the members that continue one."""
    arguments = arguments or {"book": "Dune"}
    message = per_request("tools/call", {"name": tool, "arguments": arguments, **then}, elicitation={"form": {}})
    headers = routing("tools/call", tool) | ({"authorization": f"Bearer {key}"} if key else {})
    async with asyncio.timeout(WAIT):
        reply = await worker.post(message, headers)
        last = (await EventStream(reply).end())[-1] if reply.streaming else json.loads(await reply.body())
    found: Json = last.get("result") or {"error": last["error"]}
    return found


def answer(asked: Json, with_: Json = YES) -> Json:
    """Return the members of a retry with one answer to every question."""
    assert asked.get("resultType") == "input_required", asked
    return {"inputResponses": dict.fromkeys(asked["inputRequests"], with_), "requestState": asked["requestState"]}


def text(result: Json) -> str:
    return str(result["content"][0]["text"])


@for_each("upstream", ["2025-06-18", "2026-07-28"])
@for_each("revision", ASKING)
async def test_calls_are_sent_once_a_person_approves_them(shop: Shop, upstream: str, revision: str) -> None:
    shop.calls.clear()
    person = Person()
    async with Client(shop.front(revision=upstream), revision=revision, elicit=person, timeout=WAIT) as client:
        assert await call(client, "s_order", book="Dune") == "ordered Dune"
        assert shop.calls == [("Dune", "own", 1)]
        assert len(person.asked) == 1
        assert "s_order" in person.asked[0]
        assert '"book": "Dune"' in person.asked[0]
        assert await call(client, "s_wrap", book="Dune") == "Dune in red"
        assert len(person.asked) == 3  # the tool's own question doesn't repeat the approval


@for_each("revision", ASKING)
async def test_declined_and_dismissed_calls_are_not_sent(shop: Shop, revision: str) -> None:
    for said, reason in (("decline", "declined"), ("cancel", "dismissed")):
        async with Client(shop.front(), revision=revision, elicit=Person(said), timeout=WAIT) as client:
            found = await call(client, "s_order", book="Dune")
            assert f"The user {reason}" in found
            assert "so it wasn't sent" in found
    assert shop.calls == []


@for_each("revision", list(BY_DATE))
async def test_clients_that_cannot_ask_anybody_are_refused(shop: Shop, revision: str) -> None:
    asks = revision not in ASKING  # these revisions have no questions
    person = Person()
    async with Client(shop.front(), revision=revision, elicit=person if asks else None, timeout=WAIT) as client:
        assert "A person has to approve this call, so it wasn't sent." in await call(client, "s_order", book="Dune")
    assert (shop.calls, person.asked) == ([], [])


async def test_rest_callers_are_refused(shop: Shop) -> None:
    async with shop.workers(count=1, serve="rest") as (worker,):
        for path, body in (("/tools/s_order", {"book": "Dune"}), ("/mcp/tools/call", {"name": "s_order"})):
            fields = {"content-type": "application/json"}
            reply = await worker.http.fetch("POST", path, fields, json.dumps(body).encode())
            said = await reply.body()
            assert b"over MCP" in said or b"A person has to approve" in said
    assert shop.calls == []


async def test_one_answer_counts_for_one_call(shop: Shop) -> None:
    async with shop.workers(count=3) as workers:
        asked = await send(workers[0])
        results = await asyncio.gather(*(send(workers[n % 3], then=answer(asked)) for n in range(6)))
        assert {text(each) for each in results} == {"ordered Dune"}  # copies get the result of the only call
        assert shop.calls == [("Dune", "own", 1)]
        assert text(await send(workers[1], then=answer(asked))) == "ordered Dune"
        assert len(shop.calls) == 1


async def test_one_answer_counts_for_one_call_after_its_worker_has_died(shop: Shop) -> None:
    async with shop.workers(count=3) as (first, *others):
        asked = await send(first)
        await first.die()
        results = await asyncio.gather(*(send(others[n % 2], then=answer(asked)) for n in range(4)))
        assert "ordered Dune" in map(text, results)
        assert shop.calls == [("Dune", "own", 1)]
        for worker in others:
            results.append(await send(worker, then=answer(asked)))
        assert all(text(each) == "ordered Dune" or "already used" in text(each) for each in results)
        assert len(shop.calls) == 1


async def test_answers_without_a_question_do_not_count(shop: Shop) -> None:
    async with shop.workers() as workers:
        asked = await send(workers[0])
        (key,) = asked["inputRequests"]
        for then in (
            {"inputResponses": {key: YES}},
            {"inputResponses": {key: YES}, "requestState": ""},
            {"requestState": asked["requestState"]},
        ):
            assert (await send(workers[1], then=then))["resultType"] == "input_required"
        forged = await send(workers[1], then={"inputResponses": {key: YES}, "requestState": "AAAA"})
        assert forged["error"]["code"] == -32602
        other = await send(workers[1], then=answer(asked), book="Emma")
        assert other["error"]["code"] == -32602
        tool = await send(workers[1], "s_look", answer(asked), path="/")
        assert tool["error"]["code"] == -32602
        assert shop.calls == []


async def test_state_of_another_question_approves_nothing(shop: Shop) -> None:
    class Ask:
        async def on_call(self, request: Any, call_next: Any) -> Any:
            await request.context.elicit("Sure?", {"type": "object", "properties": {}}, key="sure")
            return await call_next(request)

    async with shop.workers(middleware=[Ask()]) as workers:
        asked = await send(workers[0])
        assert list(asked["inputRequests"]) == ["sure"]
        both = answer(asked)
        both["inputResponses"]["millstream.gateway/approve"] = YES
        second = await send(workers[1], then=both)
        assert list(second["inputRequests"]) == ["millstream.gateway/approve"]
        assert shop.calls == []
        assert text(await send(workers[0], then=answer(second))) == "ordered Dune"


async def test_declined_question_cannot_be_answered_again(shop: Shop) -> None:
    async with shop.workers() as workers:
        asked = await send(workers[0])
        assert "declined" in text(await send(workers[1], then=answer(asked, {"action": "decline"})))
        assert "already answered" in (await send(workers[0], then=answer(asked)))["error"]["message"]
        assert shop.calls == []


async def test_tool_runs_once_although_it_asks_a_question_of_its_own(shop: Shop) -> None:
    for revision in ("2025-11-25", "2026-07-28"):
        shop.calls.clear()
        async with shop.workers(revision=revision) as workers:
            approved = await send(workers[0], "s_wrap", answer(await send(workers[0], "s_wrap")))
            (key,) = approved["inputRequests"]
            assert "paper" in approved["inputRequests"][key]["params"]["message"]
            then = answer(approved, {"action": "accept", "content": {"value": "red"}})
            results = await asyncio.gather(*(send(workers[n % 2], "s_wrap", then) for n in range(3)))
            assert "Dune in red" in map(text, results)
            assert all(text(each) == "Dune in red" or "already used" in text(each) for each in results)
            assert shop.calls == ["red"]


async def test_approval_belongs_to_one_person(shop: Shop) -> None:
    async with shop.workers(auth=auth.keys(named_keys={"ada": ADA, "bob": BOB})) as workers:
        asked = await send(workers[0], key=ADA)
        assert (await send(workers[1], then=answer(asked), key=BOB))["error"]["code"] == -32602
        assert text(await send(workers[1], then=answer(asked), key=ADA)) == "ordered Dune"


async def test_person_sees_the_arguments_as_they_are_sent(shop: Shop) -> None:
    hidden = {"account": "company", "api_key": "s3cret-value"}
    policy = UpstreamPolicy(tools={"order": ToolPolicy(approve=True, hidden=hidden, defaults={"copies": 3})})
    person = Person()
    async with Client(shop.front(policy), elicit=person, timeout=WAIT) as client:
        await call(client, "s_order", book='a\u202eb\n"copies": 1', account="own")
    (question,) = person.asked
    assert '"account": "company"' in question
    assert '"copies": 3' in question
    assert "own" not in question
    assert "s3cret" not in question
    assert "\u202e" not in question
    assert "\\u202e" in question
    assert question.count("\n") == 6


async def test_long_arguments_are_shown_with_both_ends_or_refused(shop: Shop) -> None:
    person = Person()
    async with Client(shop.front(), elicit=person, timeout=WAIT) as client:
        assert "ordered" in await call(client, "s_order", book="BEGIN" + "x" * 50_000 + "END")
        assert "BEGIN" in person.asked[0]
        assert "END" in person.asked[0]
        assert "49,458 characters" in person.asked[0]
        found = await call(client, "s_order", book="Dune", **{f"more{number}": "x" * 500 for number in range(20)})
        assert "too many arguments to show" in found
    assert len(shop.calls) == 1


async def test_approval_follows_hints_tags_and_values(shop: Shop) -> None:
    cases: list[tuple[UpstreamPolicy, str, Json, bool]] = []

    def add(asks: bool, tool: str, arguments: Json | None = None, **rules: Any) -> None:
        cases.append((UpstreamPolicy(**rules), tool, arguments or {}, asks))

    writes, destructive = ApprovalPolicy(hint="writes"), ApprovalPolicy(hint="destructive")
    add(True, "look", approve=writes)  # the hint is only the upstream's word
    add(False, "look", approve=writes, trust_hints=True)
    add(True, "tidy", approve=writes, trust_hints=True)
    add(False, "tidy", approve=destructive, trust_hints=True)
    add(True, "tidy", approve=destructive)
    add(True, "order", {"book": "Dune"}, approve=destructive, trust_hints=True)
    known = {"look": ToolPolicy(annotations={"readOnlyHint": True})}
    add(False, "look", approve=writes, tools=known)
    unknown = {"look": ToolPolicy(annotations={"readOnlyHint": False})}
    add(True, "look", approve=writes, tools=unknown, trust_hints=True)
    tagged = {"look": ToolPolicy(tags=("careful",))}
    add(True, "look", approve=ApprovalPolicy(tags=("careful", "other")), tools=tagged)
    add(False, "tidy", approve=ApprovalPolicy(tags=("careful", "other")), tools=tagged)
    values = ApprovalPolicy(arguments={"path": "/secret*"})
    for path in ("/secret", "/SECRET/a", "/\u017fecret", "/\u200bsecret", None):
        add(True, "look", {} if path is None else {"path": path}, approve=values)
    add(False, "look", {"path": "/public"}, approve=values)
    add(False, "look", {}, approve=values, tools={"look": ToolPolicy(defaults={"path": "/public"})})
    add(True, "look", {"path": "/public"}, approve=values, tools={"*": ToolPolicy(approve=True)})
    add(True, "look", {"path": "/public"}, shared=UpstreamPolicy(approve=True), tools={"look": ToolPolicy()})
    add(True, "order", {"book": "Dune", "copies": 12}, approve=ApprovalPolicy(arguments={"copies": "1?"}))
    add(False, "order", {"book": "Dune", "copies": 1}, approve=ApprovalPolicy(arguments={"copies": "1?"}))
    for policy, tool, arguments, asks in cases:
        person = Person()
        async with Client(shop.front(policy), elicit=person, timeout=WAIT) as client:
            await call(client, f"s_{tool}", **arguments)
        assert bool(person.asked) is asks, (policy, tool, arguments)


async def find_asked(shop: Shop, name: str, pattern: str, calls: list[Json]) -> list[bool]:
    """Return about which calls a rule for an argument asks."""
    policy, found = UpstreamPolicy(approve=ApprovalPolicy(arguments={name: pattern})), list[bool]()
    person = Person("decline")
    async with Client(shop.front(policy), elicit=person, timeout=WAIT) as client:
        for arguments in calls:
            person.asked.clear()
            await call(client, "s_order", **arguments)
            found.append(bool(person.asked))
    return found


async def test_argument_in_another_case_does_not_replace_the_one_that_a_rule_names(shop: Shop) -> None:
    calls: list[Json] = [{"Account": "own"}, {"account": None, "ACCOUNT": "own"}, {"account": "own", "Account": "co"}]
    assert await find_asked(shop, "account", "co*", calls) == [True] * 3
    assert await find_asked(shop, "account", "co*", [{"account": "own", "Account": "own"}]) == [False]


async def test_names_in_an_object_match_like_values(shop: Shop) -> None:
    nested: list[Any] = [
        {"production": 2},
        {"PRODUCTION": None},
        {"targets": [{"production": {}}]},
        '{"production": 2}',
        ['{"targets": {"production": 2}}'],
        {"staging": "production"},
    ]
    assert await find_asked(shop, "copies", "prod*", [{"copies": each} for each in nested]) == [True] * len(nested)
    assert await find_asked(shop, "copies", "prod*", [{"copies": {"staging": 2}}]) == [False]
    assert await find_asked(shop, "copies", "7", [{"copies": {"7.0": True}}]) == [True]


def test_values_that_are_too_long_to_compare_match() -> None:
    for long in ("x" * 5000, "\u0301\u0316" * 3000, ["x"] * 2000, {"x": ["x" * 4000] * 20}, f"[{'1,' * 1500}1]"):
        assert _matches_values({"copies": "prod*"}, {"copies": long})
    for short in ("x" * 4000, "\u0301\u0316" * 2000, ["x"] * 900, f"[{'1,' * 400}1]"):
        assert not _matches_values({"copies": "prod*"}, {"copies": short})


async def test_calls_with_a_long_value_are_asked_about(shop: Shop) -> None:
    assert await find_asked(shop, "book", "prod*", [{"book": "x" * 4000}, {"book": "x" * 5000}]) == [False, True]


@pytest.mark.parametrize("unit", DEAR_TEXT.values(), ids=DEAR_TEXT)
def test_values_are_compared_in_linear_time(unit: str) -> None:
    def compare(size: int) -> None:
        _matches_values({"env": "prod*"}, {"env": repeat(unit, size)})
        _matches_values({"env": "prod*"}, {"env": [repeat(unit, 50)] * (size // 50)})

    check_linear(compare, 4_000)


def test_questions_are_measured_before_they_are_worded() -> None:
    """Indented at 50 levels, the text is 50 times as long."""
    deep: Any = [1] * 200_000
    for _ in range(50):
        deep = [deep]
    tracemalloc.start()
    try:
        with pytest.raises(ToolError, match="too many arguments"):
            _word_question("order", {"value": deep})
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    with pytest.raises(ToolError, match="too many arguments"):
        _word_question("x" * 10_000, {})


def test_question_shows_what_nobody_sees_and_leaves_languages_readable() -> None:
    hidden = "\u00ad\u034f\u061c\u115f\u17b4\u180b\u200b\u202e\u2060\u2800\u3164\ufe0f\uffa0\U000e0100\U000e0041"
    question = _word_question("s_order", {"book": f"Thanks!{hidden}"})
    assert [each for each in hidden if each in question] == []
    for plain in ("हिन्दी में किताबें", "كِتَابٌ مُّفِيدٌ", "หนังสือที่ดี", "שָׁלוֹם", "ཧཱུྃ", "Việt Nam", "본", "𝄞"):
        assert plain in _word_question("s_order", {"book": plain})
    question = _word_question("s_order", {"book": "x" + "\u0301" * 40})
    assert question.count("\u0301") == 8
    assert question.count("\\u0301") == 32


@for_each(
    ("value", "shown"),
    [
        ("\u2764\ufe0f, \u00a9\ufe0f", "\u2764\ufe0f, \u00a9\ufe0f"),
        ("1\ufe0f\u20e3 #\ufe0f\u20e3", "1\ufe0f\u20e3 #\ufe0f\u20e3"),
        ("\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea"),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f3f3\ufe0f\\u200d\U0001f308"),
        ("\U0001f3f4\U000e0067\U000e007f", "\U0001f3f4\\ue0067\\ue007f"),
        ("\u2764\ufe0f\ufe0f", "\u2764\ufe0f\\ufe0f"),
        ("\u2764\ufe0e", "\u2764\\ufe0e"),
        ("\ufe0f a\ufe0f 1\ufe0f", "\\ufe0f a\\ufe0f 1\\ufe0f"),
        ("\U0001f1e9\U0001f1ea\ufe0f \U0001f3fd\ufe0f", "\U0001f1e9\U0001f1ea\\ufe0f \U0001f3fd\\ufe0f"),
    ],
)
def test_question_shows_emoji_with_their_selectors_and_no_other_selector(value: str, shown: str) -> None:
    assert f'"{shown}"' in _word_question("s_order", {"book": value})


async def test_numbers_match_in_each_notation(shop: Shop) -> None:
    same: list[Any] = [100, 100.0, 1e2, "0100", "+100", " 1e2 ", "0x64", ["100.00"], "\uff11\uff10\uff10.0"]
    for pattern in ("100", "100.0", "1e2", "10?"):
        assert await find_asked(shop, "copies", pattern, [{"copies": each} for each in same]) == [True] * len(same)
    other: list[Any] = [1, 1000, 100.5, "1e20", "100 books", True, "nan", "inf", "1e400", "1" * 4000, "0x" + "1" * 4000]
    assert await find_asked(shop, "copies", "100", [{"copies": each} for each in other]) == [False] * len(other)
    assert await find_asked(shop, "copies", "1.5", [{"copies": "1.50"}]) == [True]


@for_each("revision", ASKING)
async def test_relayed_upstream_is_asked_only_after_approval(shop: Shop, revision: str) -> None:
    shop.calls.clear()
    front = Server("front")
    front.upstream(
        "s", shop.server, prefix="", start_timeout=WAIT, policy=UpstreamPolicy(tools={"o*": ToolPolicy(approve=True)})
    )
    person = Person("decline")
    async with Client(front, elicit=person, timeout=WAIT, revision=revision) as client:
        assert await call(client, "look") == "looked at /"
        assert "declined" in await call(client, "order", book="Dune")
    assert shop.calls == ["/"]
    assert len(person.asked) == 1


async def test_tools_that_search_finds_are_approved(shop: Shop) -> None:
    async with shop.workers(settings={"tool_search": True}) as workers:
        inner = {"name": "s_order", "arguments": {"book": "Dune"}}
        asked = await send(workers[0], "call_tool", **inner)
        assert shop.calls == []
        assert "s_order" in str(asked["inputRequests"])
        then = answer(asked)
        results = [await send(workers[1], "call_tool", then, **inner), await send(workers[0], then=then)]
        assert [text(each) for each in results] == ["ordered Dune"] * 2
        assert len(shop.calls) == 1


async def test_approved_call_becomes_a_task_once(shop: Shop) -> None:
    @shop.server.tool(task="allowed")
    async def bind(book: str) -> str:
        """Bind a book."""
        shop.calls.append(book)
        return f"bound {book}"

    person = Person()
    async with Client(shop.front(), elicit=person, timeout=WAIT) as client:
        assert client.tasks.supported
        assert (await client.call("s_bind", {"book": "Dune"}, task=True)).text == "bound Dune"
        assert (shop.calls, len(person.asked)) == (["Dune"], 1)


async def test_claims_that_are_lost_with_the_store_are_asked_for_again(shop: Shop) -> None:
    async with shop.workers() as workers:
        asked = await send(workers[0])
        assert text(await send(workers[1], then=answer(asked))) == "ordered Dune"
    async with shop.workers() as workers:  # another store with the same key
        again = await send(workers[0], then=answer(asked))
        assert again["resultType"] == "input_required"
    assert len(shop.calls) == 1


async def test_approvals_are_written_to_the_audit_log(shop: Shop, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    for revision in ("2025-11-25", "2026-07-28"):
        for said in (True, "decline", "cancel"):
            front = shop.front(settings={"audit_log": str(log)})
            async with Client(front, elicit=Person(said), timeout=WAIT, revision=revision) as client:
                await call(client, "s_order", book="Dune")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [line["outcome"] for line in lines if line["method"] == "approval" and line["target"] == "s_order"]
    assert found == ["accepted", "declined", "canceled"] * 2


class Host(Extension):
    """Keeps the host, and a tool that returns its arguments as they arrive."""

    name = "com.example/host"

    def __init__(self) -> None:
        self.received: list[bytes] = []

    async def open(self, host: Any) -> None:
        self.host = host
        host.add_item(Tool(ItemSource("raw", self._run, bytes, schema={"properties": {"path": {"type": "string"}}})))

    async def _run(self, arguments: bytes, call: Any) -> str:
        self.received.append(arguments)
        return "received"


async def test_repeated_members_are_not_sent(shop: Shop) -> None:
    extension = Host()
    shop.server = Server("shop", extensions=[extension])
    async with shop.workers(revision="2026-07-28") as workers:
        message = per_request("tools/call", {"name": "s_raw"}, elicitation={"form": {}})
        twice, headers = '"arguments": {"path": "/etc", "path": "/tmp"}, "name"', routing("tools/call", "s_raw")
        raw = json.dumps(message).replace('"name"', twice, 1)
        asked = json.loads(await (await workers[0].http.fetch("POST", "/mcp", headers, raw.encode())).body())["result"]
        (question,) = asked["inputRequests"].values()
        raw = json.dumps({**message, "params": {**message["params"], **answer(asked)}}).replace('"name"', twice, 1)
        await (await workers[1].http.fetch("POST", "/mcp", headers, raw.encode())).body()
        assert '"path": "/tmp"' in question["params"]["message"]
        assert "/etc" not in question["params"]["message"]
        assert extension.received == [b'{"path":"/tmp"}']


async def test_other_arguments_at_another_worker_are_asked_about(shop: Shop) -> None:
    accounts = iter(("company", "private"))

    def make() -> Server:
        hidden = {"account": next(accounts)}  # as while a changed configuration is rolled out
        return shop.front(UpstreamPolicy(tools={"order": ToolPolicy(approve=True, hidden=hidden)}))

    async with shop.server.running(), fleet(make, 2, store=SharedStore()) as workers:
        asked = await send(workers[0])
        assert text(await send(workers[1], then=answer(asked))) == "ordered Dune"
        assert shop.calls == [("Dune", "company", 1)]  # as approved
        shop.calls.clear()
        asked = await send(workers[0])
        await workers[0].die()
        again = await send(workers[1], then=answer(asked))
        assert '"private"' in str(again["inputRequests"])
        assert shop.calls == []
        assert text(await send(workers[1], then=answer(again))) == "ordered Dune"
        assert shop.calls == [("Dune", "private", 1)]


async def test_runs_without_a_client_are_refused(shop: Shop) -> None:
    extension = Host()
    client = ClientInfo({"elicitation": {"form": {}}}, "t", "1")
    saved = SavedCall(
        "s_order", b'{"name":"s_order","arguments":{"book":"Dune"}}', "2026-07-28", client, None, "http", ""
    )
    async with shop.workers(count=1, extensions=[extension]):
        run = extension.host.run_call(saved, id="1", report=lambda message: None)
        outcome = await run.outcome()
        assert b"A person has to approve this call" in outcome.result
        assert shop.calls == []


@for_each("revision", ASKING)
async def test_operations_of_an_api_are_approved_by_their_tags(revision: str) -> None:
    calls: list[str] = []
    api = FastAPI()

    @api.delete("/books/{isbn}", tags=["danger"], operation_id="drop")
    def drop(isbn: str, reason: str = "old") -> str:
        calls.append(isbn)
        return f"dropped {isbn}"

    @api.get("/books/{isbn}", operation_id="show")
    def show(isbn: str) -> str:
        calls.append(isbn)
        return isbn

    policy = UpstreamPolicy(approve=ApprovalPolicy(tags=("danger",)), tools={"*": ToolPolicy(hidden={"reason": "new"})})
    front = Server("front")
    front.upstream("api", openapi=OpenApi(document=api), start_timeout=WAIT, policy=policy)
    for said, sent in (("decline", []), (True, ["7"])):
        person = Person(said)
        async with Client(front, elicit=person, revision=revision, timeout=WAIT) as client:
            await call(client, "api_drop", isbn="7")
            assert calls == sent
            assert '"reason": "new"' in person.asked[0]
            await call(client, "api_show", isbn="8")
            assert calls == [*sent, "8"]
            assert len(person.asked) == 1
        calls.clear()


async def test_one_answer_starts_one_task(shop: Shop) -> None:
    @shop.server.tool(task="allowed")
    async def bind(book: str) -> str:
        """Bind a book."""
        shop.calls.append(book)
        return f"bound {book}"

    async def start(worker: Worker, then: Mapping[str, Any] = {}) -> Json:
        able = {"elicitation": {"form": {}}, "extensions": {TASKS: {}}}
        message = per_request("tools/call", {"name": "s_bind", "arguments": {"book": "Dune"}, **then}, **able)
        reply = await worker.post(message, routing("tools/call", "s_bind"))
        found: Json = json.loads(await reply.body())
        return found.get("result") or found

    async with shop.workers() as workers:
        asked = await start(workers[0])
        results = await asyncio.gather(*(start(workers[n % 2], answer(asked)) for n in range(4)))
        assert [each.get("resultType") for each in results].count("task") == 1
        assert sum("already answered" in str(each) for each in results) == 3


async def test_gateways_in_a_row_each_ask(shop: Shop) -> None:
    outer = Server("outer")
    outer.upstream("o", shop.front(), start_timeout=WAIT, policy=APPROVED)
    person = Person()
    async with Client(outer, elicit=person, timeout=WAIT) as client:
        assert await call(client, "o_s_wrap", book="Dune") == "Dune in red"
    assert ["Allow" in each for each in person.asked] == [True, True, False]
    assert shop.calls == ["red"]


async def test_answer_without_sign_in_counts_once_from_all_addresses() -> None:
    calls, shop = list[int](), Server("shop")

    @shop.tool
    def order(copies: int) -> str:
        """Order a book."""
        calls.append(copies)
        return "ordered"

    front = Server("front")
    front.upstream("s", shop, policy=UpstreamPolicy(tools={"order": ToolPolicy(approve=True)}), start_timeout=WAIT)
    fields = encode_headers({"host": "127.0.0.1", **routing("tools/call", "s_order")})

    async def call(peer: str, **answers: Any) -> Any:
        params = {"name": "s_order", "arguments": {"copies": 1}, **answers}
        body = json.dumps(per_request("tools/call", params, elicitation={})).encode()
        return (await ask_asgi(front, "POST", "/mcp", fields, body, peer=peer)).message["result"]

    async with front.running():
        asked = await call("192.0.2.1")
        (key,) = asked["inputRequests"]
        answers = {"inputResponses": {key: {"action": "accept"}}, "requestState": asked["requestState"]}
        for peer in ("192.0.2.1", "192.0.2.1", "198.51.100.2", "203.0.113.3"):
            await call(peer, **answers)
    assert calls == [1]
