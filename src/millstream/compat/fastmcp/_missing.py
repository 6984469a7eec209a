"""What the other libraries have and the door doesn't, each with the way out. Errors and `millstream port` say it."""

from collections.abc import Mapping

MISSING: Mapping[str, str] = {
    "add_transform": "there are no transforms: write a tool that calls the other one",
    "add_tool_transformation": "there are no transforms: write a tool that calls the other one",
    "add_extension": "fastmcp's extensions are its own",
    "from_tool": "there are no transforms: write a tool that calls the other one",
    "enable_components": "what is visible is the same for all sessions",
    "disable_components": "what is visible is the same for all sessions",
    "reset_visibility": "what is visible is the same for all sessions",
}
"""Name -> what to know."""

REFUSED: Mapping[str, str] = {
    "providers": "call add_provider for each",
    "transforms": "write a tool that calls the other one",
    "identity": "a proxy has its own name: give it name= and version=",
    "provider_error_strategy": "a server behind that can't be reached is in the log, and comes as soon as it answers",
    "cache_ttl": "MILLSTREAM_LIST_TTL_MS says how long clients may keep lists",
    "cache_scope": "lists that signing in changes are private, and others are public",
}
"""Option of the constructor -> what to do without it."""

ANYWAY: Mapping[str, str] = {"identity": "proxy", "provider_error_strategy": "warn"}
"""Option of a proxy -> the value that it has in any case."""


def refusal(option: str) -> str:
    """What the error about an option says."""
    instead = f": {REFUSED[option]}" if option in REFUSED else ""
    return f"FastMCP has no option {option!r} here{instead}"
