"""What the other libraries have and the door doesn't, each with the way out. Errors and `millstream port` say it."""

from collections.abc import Mapping

MISSING: Mapping[str, str] = {
    "add_provider": "there are no providers: add tools, resources and prompts, or mount a server made by create_proxy",
    "ProxyProvider": "there are no providers: mount a server made by create_proxy",
    "add_transform": "there are no transforms: write a tool that calls the other one",
    "add_tool_transformation": "there are no transforms: write a tool that calls the other one",
    "add_extension": "fastmcp's extensions are its own",
    "from_tool": "there are no transforms: write a tool that calls the other one",
    "enable_components": "what is visible is the same for all sessions",
    "disable_components": "what is visible is the same for all sessions",
    "reset_visibility": "what is visible is the same for all sessions",
}
"""Name -> what to know."""
