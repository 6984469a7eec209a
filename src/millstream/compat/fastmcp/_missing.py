"""What the other libraries have and the door doesn't, each with the way out. Errors and `millstream port` say it."""

from collections.abc import Mapping

MISSING: Mapping[str, str] = {
    "add_transform": "there are no transforms: make a tool with Tool.from_tool, and add it",
    "add_tool_transformation": "make the tool with Tool.from_tool, and add it",
    "add_extension": "fastmcp's extensions are its own",
    "ResponseCachingMiddleware": "clients keep lists for MILLSTREAM_LIST_TTL_MS; keep results in the tool",
    "enable_components": "what is visible is the same for all sessions",
    "disable_components": "what is visible is the same for all sessions",
    "reset_visibility": "what is visible is the same for all sessions",
}
"""Name -> what to know."""

REFUSED: Mapping[str, str] = {
    "providers": "call add_provider for each",
    "transforms": "make tools with Tool.from_tool",
    "identity": "a proxy has its own name: give it name= and version=",
    "provider_error_strategy": "an option of proxies only: give it to create_proxy or FastMCPProxy",
    "sampling_handler": "SEP-2577 ends sampling: ctx.sample asks the client, as long as clients can",
    "sampling_handler_behavior": "SEP-2577 ends sampling: ctx.sample asks the client, as long as clients can",
    "cache_ttl": "MILLSTREAM_LIST_TTL_MS says how long clients may keep lists",
    "cache_scope": "lists that signing in changes are private, and others are public",
}
"""Option of the constructor -> what to do without it."""

ANYWAY: Mapping[str, str] = {"identity": "proxy"}
"""Option of a proxy -> the value that it has in any case."""


def refusal(option: str) -> str:
    """What the error about an option says."""
    instead = f": {REFUSED[option]}" if option in REFUSED else ""
    return f"FastMCP has no option {option!r} here{instead}"
