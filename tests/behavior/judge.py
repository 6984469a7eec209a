"""Validate each message from a server against the official JSON Schema of its revision.

Messages are also decoded by the Structs of `millstream._protocol`, as clients do. The method of the request selects the
schema of a response; notifications and questions have their own method.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
from msgspec import Struct

from millstream._protocol.notifications import NOTIFICATIONS, InputRequiredResult
from protocol_messages import QUESTIONS, REQUESTS

Json = dict[str, Any]

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"

RESULTS = {
    "initialize": "InitializeResult",
    "server/discover": "DiscoverResult",
    "ping": "EmptyResult",
    "logging/setLevel": "EmptyResult",
    "resources/subscribe": "EmptyResult",
    "resources/unsubscribe": "EmptyResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
    "resources/list": "ListResourcesResult",
    "resources/templates/list": "ListResourceTemplatesResult",
    "resources/read": "ReadResourceResult",
    "prompts/list": "ListPromptsResult",
    "prompts/get": "GetPromptResult",
    "completion/complete": "CompleteResult",
    "subscriptions/listen": "SubscriptionsListenResult",
}
MESSAGES = {
    "notifications/cancelled": "CancelledNotification",
    "notifications/progress": "ProgressNotification",
    "notifications/message": "LoggingMessageNotification",
    "notifications/tools/list_changed": "ToolListChangedNotification",
    "notifications/prompts/list_changed": "PromptListChangedNotification",
    "notifications/resources/list_changed": "ResourceListChangedNotification",
    "notifications/resources/updated": "ResourceUpdatedNotification",
    "notifications/subscriptions/acknowledged": "SubscriptionsAcknowledgedNotification",
    "notifications/elicitation/complete": "ElicitationCompleteNotification",
    "ping": "PingRequest",
    "roots/list": "ListRootsRequest",
    "sampling/createMessage": "CreateMessageRequest",
    "elicitation/create": "ElicitRequest",
}
ERRORS = {
    -32020: "HeaderMismatchError",
    -32021: "MissingRequiredClientCapabilityError",
    -32022: "UnsupportedProtocolVersionError",
    -32042: "URLElicitationRequiredError",
}
ROUNDS = frozenset({"tools/call", "prompts/get", "resources/read"})


OURS = {**NOTIFICATIONS, **{method: params for method, (params, _) in QUESTIONS.items()}}


def _decode(struct: type[Struct], value: Json) -> None:
    """Decode a value as our client does. The Struct must define all of its members."""
    msgspec.json.decode(json.dumps(value), type=struct)
    assert set(value) <= set(struct.__struct_encode_fields__), struct.__name__


class Judge:
    """The JSON Schema of one revision."""

    def __init__(self, date: str) -> None:
        self.date = date
        path = SCHEMAS / f"{date}.schema.json"
        if not path.exists():  # the made-up revision has what the last one has, and more
            path = max(SCHEMAS.glob("*.schema.json"))
        document = json.loads(path.read_text("utf-8"))
        self._place = "$defs" if "$defs" in document else "definitions"
        self._names = frozenset(document[self._place])
        self._dialect = document["$schema"]
        self._uri = f"urn:mcp:{date}"
        self._registry = jsonschema_rs.Registry([(self._uri, document)])
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def check(self, definition: str, value: Any) -> None:
        """Fail if a value doesn't match a definition of the schema."""
        validator = self._validators.get(definition)
        if validator is None:
            assert definition in self._names, f"revision {self.date} has no {definition}"
            schema = {"$schema": self._dialect, "$ref": f"{self._uri}#/{self._place}/{definition}"}
            validator = jsonschema_rs.validator_for(schema, registry=self._registry)
            self._validators[definition] = validator
        problems = [
            f"{'/'.join(map(str, each.instance_path))}: {each.message}" for each in validator.iter_errors(value)
        ]
        assert not problems, f"not a valid {definition} of {self.date}: {problems} in {value}"

    def check_message(self, message: Json, method: str | None = None) -> None:
        """Check a message from a server.

        Args:
            method: the method of a response's request, or None if no request could be read.
        """
        assert message.get("jsonrpc") == "2.0", message
        if "method" in message:
            self.check("JSONRPCRequest" if "id" in message else "JSONRPCNotification", message)
            assert message["method"] in MESSAGES, f"not a message of servers: {message}"
            self.check(MESSAGES[message["method"]], message)
            _decode(OURS[message["method"]], message.get("params", {}))
        elif "error" in message:
            self._check_error(message)
        else:
            assert method is not None, f"a result without a request: {message}"
            new = "JSONRPCResultResponse" in self._names
            self.check("JSONRPCResultResponse" if new else "JSONRPCResponse", message)
            self._check_result(method, message["result"])

    def _check_error(self, message: Json) -> None:
        assert "result" not in message, message
        whole = "JSONRPCErrorResponse" if "JSONRPCErrorResponse" in self._names else "JSONRPCError"
        # Before 2025-11-25, the schema has no errors for unreadable requests.
        self.check(whole, message if "id" in message or whole != "JSONRPCError" else {**message, "id": 0})
        definition = ERRORS.get(message["error"]["code"])
        if definition is not None:
            self.check(definition, message)

    def _check_result(self, method: str, result: Json) -> None:
        if result.get("resultType") == "input_required":
            assert method in ROUNDS, f"{method} must not ask questions"
            assert "inputRequests" in result or "requestState" in result, result
            self.check("InputRequiredResult", result)
            for question in result.get("inputRequests", {}).values():
                self.check(MESSAGES[question["method"]], {"jsonrpc": "2.0", "id": 0, **question})
                _decode(OURS[question["method"]], question["params"])
            _decode(InputRequiredResult, result)
        else:
            self.check(RESULTS[method], result)
            _decode(REQUESTS[method][1], result)


@cache
def judge_of(date: str) -> Judge:
    """Return the compiled schema of a revision."""
    return Judge(date)
