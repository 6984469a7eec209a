"""Whether the uvicorn beside us is the one that the protocol class extends. Its class isn't a public interface.

The version decides, because a newer class with the same names may do something else; the names are looked at for
builds that say one thing and are another.
"""

import inspect

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXPECTED: dict[type, tuple[str, ...]] = {
    HttpToolsProtocol: (
        "_should_upgrade", "_start_asgi_task", "connection_lost", "connection_made", "data_received", "eof_received",
        "handle_websocket_upgrade", "on_body", "on_header", "on_headers_complete", "on_message_begin",
        "on_message_complete", "on_response_complete", "on_url", "pause_writing", "resume_writing", "shutdown",
    ),
    RequestResponseCycle: ("receive", "run_asgi", "send"),
    FlowControl: ("drain", "pause_reading", "pause_writing", "resume_reading", "resume_writing"),
}  # fmt: skip


PROVEN = "0.54"
"""The release whose class the tests have seen."""


def incompatibility() -> str:
    """Why uvicorn's class is not the one `LaneProtocol` extends; empty when it is."""
    if not f"{uvicorn.__version__}.".startswith(f"{PROVEN}."):
        return f"uvicorn {uvicorn.__version__} is another one than {PROVEN}, which it was proven with"
    expected = ["self", "config", "server_state", "app_state", "_loop"]
    if list(inspect.signature(HttpToolsProtocol.__init__).parameters) != expected:
        return "HttpToolsProtocol takes other arguments"
    for owner, names in _EXPECTED.items():
        missing = [name for name in names if not callable(getattr(owner, name, None))]
        if missing:
            return f"{owner.__name__} has no {', '.join(missing)}"
    return ""
