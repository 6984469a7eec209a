"""Which limits of concurrent calls hold for a tool call."""

import re

_ODD = re.compile(r"[^A-Za-z0-9_.-]")


def concurrency_limits(owner: str, most: int, tool: str, most_of_tool: int) -> list[tuple[str, str, int]]:
    """Return the name, key, and number of each limit.

    Args:
        owner: of the call.
        most: calls of one owner at the same time; 0 for any number.
        tool: its name.
        most_of_tool: calls of the tool at the same time; 0 for any number.
    """
    limits = [("concurrency", owner, most)] if most and owner else []
    if most_of_tool:
        limits.append((f"concurrency:{_ODD.sub('_', tool)}", "", most_of_tool))
    return limits
