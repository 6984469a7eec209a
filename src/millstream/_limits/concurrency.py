"""The concurrency limits that apply to a tool call."""

import re

_ODD = re.compile(r"[^A-Za-z0-9_.-]")


def concurrency_limits(owner: str, most: int, tool: str, most_of_tool: int) -> list[tuple[str, str, int]]:
    """Return the name, key, and maximum of each limit.

    Args:
        owner: The owner of the call.
        most: Maximum number of concurrent calls per owner, or 0 for no limit.
        tool: The name of the tool.
        most_of_tool: Maximum number of concurrent calls of the tool, or 0 for no limit.
    """
    limits = [("concurrency", owner, most)] if most and owner else []
    if most_of_tool:
        limits.append((f"concurrency:{_ODD.sub('_', tool)}", "", most_of_tool))
    return limits
