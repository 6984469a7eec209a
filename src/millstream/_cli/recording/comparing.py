"""Plays the client of a recording against a server, and compares the answers with those of then.

The connection is made again, so the server may be another one, at another revision, over another transport. What
belongs to a connection or a revision isn't compared.
"""

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from msgspec import Struct

from millstream._cli.recording.transcript import Exchange, Said, is_answer, params_of, plain_params
from millstream._protocol.json_schema import is_array, is_object, members
from millstream.client._client import Client
from millstream.client._errors import Failure
from millstream.client._questions import Answered, Question

_OF_CONNECTIONS = frozenset({
    "initialize", "ping", "server/discover", "logging/setLevel", "subscriptions/listen", "resources/subscribe",
    "resources/unsubscribe",
})  # fmt: skip
_OF_REVISIONS = frozenset({"_meta", "resultType", "ttlMs", "cacheScope"})


class Compared(Struct, frozen=True):
    """One request, and how the answers differ."""

    method: str
    params: Mapping[str, Any]
    difference: str
    """As people read changes; empty if there's none."""


def repeatable(exchanges: list[Exchange]) -> list[Exchange]:
    """The requests to send again: not those that make a connection, nor rounds that led to a question."""
    return [
        each
        for each in exchanges
        if each.request.get("method") not in _OF_CONNECTIONS
        and each.answer is not None
        and _result(each.answer).get("resultType") != "input_required"
    ]


def answers(said: list[Said]) -> Callable[[Question], Answered]:
    """Answers questions as the person did in the recording, in the same order; declines when there are no more."""
    recorded = iter(list(_answered(said)))

    def elicit(question: Question) -> Answered:
        given = next(recorded, None)
        if given is None or given.get("action") != "accept":
            return str(given.get("action")) if given is not None else "decline"
        content = given.get("content")
        return content if is_object(content) else True

    return elicit


def _answered(said: list[Said]) -> Iterator[Mapping[str, Any]]:
    asked = {
        json.dumps(each.message.get("id"))
        for each in said
        if each.who == "server" and each.message.get("method") == "elicitation/create"
    }
    for each in said:
        message = each.message
        if each.who != "client":
            continue
        if is_answer(message) and json.dumps(message.get("id")) in asked:
            yield _result(message)
        responses = members(params_of(message).get("inputResponses"))
        yield from (each for each in responses.values() if is_object(each) and "action" in each)


async def compare(client: Client, exchange: Exchange, ignored: Collection[str]) -> Compared:
    """Send a request again, and compare.

    Raises:
        ClientError: there's no answer.
    """
    request, then = exchange.request, exchange.answer or {}
    method, params = str(request["method"]), plain_params(request)
    try:
        now: dict[str, Any] = {"result": await client.request(method, params)}
    except Failure as exc:
        now = {"error": {"code": exc.code, "message": exc.message}}
    old = _text({name: then[name] for name in ("result", "error") if name in then}, ignored)
    new = _text(now, ignored)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "recorded", "now", lineterm="", n=2)
    return Compared(method, params, "\n".join(lines))


def _text(answer: Mapping[str, Any], ignored: Collection[str]) -> str:
    error = answer.get("error")
    if is_object(error):
        answer = {"error": {"code": error.get("code"), "message": error.get("message")}}
    return json.dumps(_without(answer, {*ignored, *_OF_REVISIONS}), indent=2, sort_keys=True, ensure_ascii=False)


def _without(value: Any, names: Collection[str]) -> Any:
    if is_object(value):
        return {name: _without(each, names) for name, each in value.items() if name not in names}
    if is_array(value):
        return [_without(each, names) for each in value]
    return value


def _result(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return members(answer.get("result"))
