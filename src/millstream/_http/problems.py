"""Problem details (RFC 9457) for errors of plain REST operations.

Each kind has one status and one title. Its `type` is a URL in the server's own `/docs` page that explains it. 422 is
for arguments that don't match the schema, and 409 for a call with valid arguments that can't be done in the current
state. A caller that generates its arguments from the schema never gets a 422.
"""

from msgspec import Struct

from millstream._http.message import Response
from millstream._protocol.jsonrpc import encode

PROBLEM_TYPE = "application/problem+json"
_HEAD = b"content-type: application/problem+json\r\n"


class ProblemKind(Struct, frozen=True):
    """A kind of problem."""

    slug: str
    status: int
    title: str
    meaning: str
    """Cause and advice, for the OpenAPI document."""
    head: bytes = _HEAD


MALFORMED = ProblemKind("malformed-body", 400, "Malformed body", "The body is not UTF-8 JSON, or nested too deeply.")
UNKNOWN_TOOL = ProblemKind("unknown-tool", 404, "Unknown tool", "This server has no tool with that name.")
TOOL_ERROR = ProblemKind(
    "tool-error", 409, "The tool failed",
    "The arguments are valid, but the tool could not complete the call. The detail is the tool's own explanation.",
)  # fmt: skip
NEEDS_ANSWERS = ProblemKind(
    "needs-answers", 409, "The tool needs input",
    "The tool asks the user or the client's model while it runs, which isn't possible in a REST call. Call it "
        "over MCP.",
)  # fmt: skip
WRONG_TYPE = ProblemKind(
    "unsupported-type", 415, "Unsupported media type", "The body must be application/json, without a content coding."
)
INVALID_ARGUMENTS = ProblemKind(
    "invalid-arguments", 422, "Invalid arguments",
    "The arguments don't match the tool's schema. The detail says what to fix.",
)  # fmt: skip
REFUSED = ProblemKind("refused", 403, "Refused", "The call was rejected before it ran.")
INTERNAL = ProblemKind(
    "internal-error", 500, "Internal error",
    "The server failed. Its log has the details under the incident identifier.",
)  # fmt: skip
BUSY = ProblemKind(
    "busy", 503, "Too many calls are running", "Retry after the time in Retry-After.", _HEAD + b"retry-after: 1\r\n"
)
KINDS = (MALFORMED, UNKNOWN_TOOL, REFUSED, TOOL_ERROR, NEEDS_ANSWERS, WRONG_TYPE, INVALID_ARGUMENTS, INTERNAL, BUSY)


def plain_problem(status: int, detail: str, head: bytes = b"") -> Response:
    """Return an error that needs no kind, because its status is sufficient."""
    return Response(encode({"status": status, "detail": detail}), status, _HEAD + head)


def problem(
    kind: ProblemKind, detail: str, *, root_path: str = "", status: int = 0, incident: str = "", head: bytes = b""
) -> Response:
    """Return a problem response.

    Args:
        kind: the kind of problem.
        detail: explanation of this occurrence, for the caller.
        root_path: the server's mount path, for the URL of the explanation.
        status: status to use instead of the kind's own.
        incident: identifier of the log entry with details.
        head: further header lines.
    """
    body: dict[str, str | int] = {
        "type": f"{root_path}/docs#{kind.slug}",
        "title": kind.title,
        "status": status or kind.status,
        "detail": detail,
    }
    if incident:
        body["incident"] = incident
    return Response(encode(body), status or kind.status, kind.head + head)
