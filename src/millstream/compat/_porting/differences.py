"""What the door does otherwise than the libraries it stands in for. The page about it shows this table."""

from collections.abc import Mapping

from millstream.compat.fastmcp._missing import MISSING

OPTIONS: Mapping[str, str] = {
    "event_store": "taken and not needed: streams can be resumed anyway, across workers with a shared store",
    "retry_interval": "taken and not needed: the interval is ours",
    "session_idle_timeout": "taken and not used: a session costs nothing while it is idle",
    "max_sessions": "taken and not used: a session costs nothing while it is idle",
    "dependencies": "kept, and nothing is installed",
    "debug": "only Starlette's own debug pages",
    "host": "an address that others reach is served although nobody signs in, as the program says",
    "stateless_http": "no session ids; clients of the newest revision have none anyway",
    "auth_server_provider": "needs the extra auth; redirect URIs are https, loopback or a scheme like com.example.app",
    "client_log_level": "taken and not used: clients get every log message until they say otherwise",
}
"""Options of the constructor."""

MEMBERS: Mapping[str, str] = {
    "lifespan": "entered once for the server, not for each session",
    "tool": "works without parentheses, too; plain functions run in a thread (run_in_thread=False for the loop); auth= "
    "is refused; Resolve parameters that ask do so one after the other",
    "prompt": "works without parentheses, too",
    "resource": "the number and the names of variables are checked as the library does; auth= and security= are "
    "refused",
    "mount": "what is added later is there, too; names get the prefix and an underscore",
    "import_server": "the same as mount: what is added later is there, too",
    "run": "over HTTP, Streamable HTTP and HTTP+SSE are both served, whichever is named",
    "custom_route": "Host and Origin are checked, except where an application made by http_app() serves it",
    "add_middleware": "around the items of mounted servers, too, where prompts and errors are as our engine has them",
    "as_proxy": "one connection for each session, and one for all callers without a session; a command runs once for "
    "all, unless StatefulProxyClient leads to it; headers and keys of callers are not passed on; the proxy starts even "
    "if the server behind it doesn't answer yet",
    "add_tool": "takes functions with fastmcp's @tool, and what Tool.from_tool makes; transform_fn's arguments are "
    "checked by its annotations",
    "add_provider": "takes OpenAPIProvider and ProxyProvider of millstream.compat.fastmcp.standalone",
    "from_openapi": "documents of version 3.0 and 3.1; headers of callers are not passed on; values that lead to "
    "another path are refused",
    "from_fastapi": "as from_openapi, in this process",
    "completion": "asked for arguments of prompts and templates that are registered",
    "call_tool": "gives content, or content and structured content; the attributes of CallToolResult are there, too",
}
"""Methods of a server."""

CONTEXT: Mapping[str, str] = {
    "set_state": "a coroutine; for the session, at every worker; what JSON can't hold stays in this process",
    "get_state": "a coroutine; for the session, at every worker; what JSON can't hold stays in this process",
    "elicit": "with the newest revision the function runs again from its start with the answer",
    "sample": "gives the content; tools and result types are not supported",
    "request_context": "request has headers; lifespan_context, meta, session and request_id are there",
    "report_progress": "values that do not increase are not sent",
    "session_id": "with the newest revision, which has no sessions, fastmcp's is one of the call only",
    "session": "send_…, elicit_…, create_message and list_roots; nothing after the call has ended",
}
"""Members of `Context`."""

BEHAVIOR: Mapping[str, str] = {
    "an unknown tool": "a protocol error (-32602), as the specification says, not a result with isError",
    "an unknown resource": "the specification's error for it (-32002, or -32602 in the newest revision)",
    "a plain function": "runs in a worker thread, as in the SDK 2.x and fastmcp; SDK 1.x runs it in the event loop",
    "a tool that raises": "the same text for the model; the traceback goes to standard error",
    "a session": "has no memory here: state kept for it is of this process",
    "rate limits": "those of fastmcp's middleware count in each process; our own count for all workers",
    "a list in a multipart field": "sent as OpenAPI says, also if the field has an encoding; fastmcp sends "
    "Python's text of it then",
    "list changes": "reach every client that listens, not only the caller",
}
"""What differs although no name says so."""

__all__ = ["BEHAVIOR", "CONTEXT", "MEMBERS", "MISSING", "OPTIONS"]
