import json
from typing import Any

from cases import for_each
from millstream._http.message import Response
from millstream._protocol.errors import ProtocolError
from millstream._server.calls.call import Call
from millstream._transports.open_streams import NullReplyChannel
from millstream._transports.rest import RestRoutes
from millstream._web.pages import asset
from problem_kinds import KINDS
from rest_world import add_failing_tools, post, routes, world
from stub_auth import protect


async def call(name: str, body: Any = None, root: str = "", **headers: str) -> tuple[Response, Any]:
    """A call of a tool of the world and its decoded reply."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    server = world()
    add_failing_tools(server)
    async with routes(server) as rest:
        response = await rest.run_tool(post(f"/tools/{name}", data, root, **headers))
    return response, json.loads(response.body)


def check(response: Response, body: Any, status: int, slug: str) -> None:
    """A problem of the right kind (RFC 9457 §3.1)."""
    assert response.status == body["status"] == status
    assert b"content-type: application/problem+json\r\n" in response.head
    assert body["type"] == f"/docs#{slug}"
    assert body["title"]
    assert body["detail"]


@for_each(
    ("name", "arguments", "expected"),
    [
        ("add", {"a": 1, "b": 2}, 3),
        ("add", {"a": 1.0}, 1),
        ("order", {"order": {"isbn": "9"}, "when": "2000-01-31"}, {"copies": 1}),
        ("count", {"folder": {"name": "a", "inside": [{"name": "b"}]}}, 2),
        ("greet", {"name": "Ann"}, {"content": [{"type": "text", "text": "Hello, Ann!"}]}),
        ("nothing", {}, {"content": []}),
        ("loose", {"value": [1, None]}, [1, None]),
        ("parcel", {"items": [{"isbn": "9"}], "email": "a@b"}, 1),
    ],
)
async def test_replies_are_the_structured_result_or_content(name: str, arguments: Any, expected: Any) -> None:
    response, body = await call(name, arguments)
    assert (response.status, body) == (200, expected)
    assert response.head == b"content-type: application/json\r\n"


async def test_arguments_that_violate_a_hand_written_schema_get_422() -> None:
    response, body = await call("parcel", {"items": [{"isbn": 9}], "phone": "1"})
    check(response, body, 422, "invalid-arguments")
    assert "'items[0].isbn' must be a string, got the integer 9" in body["detail"]
    assert "'phone' must be a string matching regex '^[0-9]{3,9}$', got \"1\"" in body["detail"]


async def test_empty_bodies_mean_no_arguments() -> None:
    response, body = await call("greet", content_type="")
    assert response.status == 200
    assert body["content"][0]["text"] == "Hello, world!"


async def test_images_become_content_blocks() -> None:
    _, body = await call("picture")
    assert body["content"][0]["type"] == "image"
    assert body["content"][0]["mimeType"] == "image/png"


async def test_progress_is_dropped_and_headers_reach_the_tool() -> None:
    _, body = await call("whisper", {}, x_from="here")
    assert body["content"][0]["text"].endswith(" here")


async def test_parameter_headers_are_not_required_for_rest() -> None:
    response, body = await call("region", {"name": "eu"})
    assert response.status == 200, body


async def test_unknown_tools_get_404() -> None:
    check(*await call("nope", {}), 404, "unknown-tool")


@for_each(
    ("arguments", "words"),
    [
        ({}, "missing 'a'"),
        ({"a": "x"}, "'a' must be an integer"),
        ({"a": 1, "c": 2}, "unknown 'c'"),
        ([1], "an object"),
        ("text", "an object"),
        (b"null", "an object"),
    ],
)
async def test_invalid_arguments_get_422_with_a_fix(arguments: Any, words: str) -> None:
    response, body = await call("add", arguments)
    check(response, body, 422, "invalid-arguments")
    assert words in body["detail"]


@for_each("body", [b"{", b"{}x", b'{"a":NaN}', b'"\xff"', b"[" * 65 + b"]" * 65])
async def test_invalid_json_gets_400(body: bytes) -> None:
    check(*await call("add", body), 400, "malformed-body")


@for_each(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": ""},
        {"content_encoding": "gzip"},
    ],
)
async def test_other_content_types_get_415(headers: dict[str, str]) -> None:
    check(*await call("add", {"a": 1}, **headers), 415, "unsupported-type")


async def test_tool_errors_get_409_with_their_text() -> None:
    response, body = await call("refuse", {"reason": "rain"})
    check(response, body, 409, "tool-error")
    assert body["detail"] == "Not today: rain"


async def test_protocol_errors_from_tools_get_409() -> None:
    response, body = await call("object_", {})
    check(response, body, 409, "tool-error")
    assert body["detail"] == "Not these arguments together"


async def test_rest_calls_discard_notifications() -> None:
    line = NullReplyChannel()
    await line.send(b"{}")
    assert line.push(b"{}")
    await line.keep_alive()
    assert not await line.interrupt(None)
    assert not line.asks


async def test_tool_timeouts_apply() -> None:
    response, body = await call("sleep", {})
    check(response, body, 409, "tool-error")
    assert "didn't finish" in body["detail"]


@for_each("name", ["ask", "needs_model"])
async def test_tools_that_ask_questions_get_409_with_a_hint_to_use_mcp(name: str) -> None:
    check(*await call(name, {}), 409, "needs-answers")


@for_each("name", ["crash", "lie"])
async def test_internal_failures_get_500_with_an_incident(name: str) -> None:
    response, body = await call(name, {})
    check(response, body, 500, "internal-error")
    assert body["incident"] in body["detail"]
    assert "hunter2" not in response.body.decode()
    assert "many" not in response.body.decode()


async def test_problem_types_include_the_mount_path() -> None:
    _, body = await call("nope", {}, root="/shop")
    assert body["type"] == "/shop/docs#unknown-tool"


async def test_excess_calls_get_503_with_retry_after() -> None:
    async with routes(world()) as rest:
        rest._dispatcher.load.max_calls = rest._dispatcher.load.max_each = 0
        response = await rest.run_tool(post("/tools/add", b'{"a":1}'))
    check(response, json.loads(response.body), 503, "busy")
    assert b"retry-after: 1\r\n" in response.head


async def test_gate_rejections_keep_their_status() -> None:
    async with world().running() as runtime:

        def refuse(call: Call) -> None:
            raise ProtocolError(-32000, "No add for you", status=429)

        runtime.dispatcher.gate = refuse
        response = await RestRoutes(runtime.dispatcher, events=False).run_tool(post("/tools/add", b'{"a":1}'))
    body = json.loads(response.body)
    check(response, body, 429, "refused")
    assert body["detail"] == "No add for you"


async def test_credentials_are_checked_before_tools_are_looked_up() -> None:

    challenge = Response(b"Who are you?\n", 401, b"www-authenticate: Bearer\r\n")

    async def guard(request: Any) -> Response:
        return challenge

    async with routes(world()) as rest:
        assert await protect(rest.run_tool, guard)(post("/tools/nope", b"{}")) is challenge


def test_every_problem_type_is_documented() -> None:
    """RFC 9457 §3.1.1."""
    page = asset("/docs").body.decode()
    for kind in KINDS:
        assert f'<tr id="{kind.slug}"><td class="number">{kind.status}</td>' in page
