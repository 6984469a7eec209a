"""Limits of one answer."""

from msgspec import Struct

from millstream._protocol.errors import SuggestionMeta


class Limits(Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Limits of one answer. ``Agent(model, ["shop.py"], limits=Limits(max_rounds=5))``"""

    max_rounds: int = 20
    """Maximum requests to the model: one, and one more after each set of tool calls."""
    max_tokens: int = 0
    """Maximum total tokens, including prompts; 0 for no limit. The round that reaches it is the last one."""
    max_result: int = 50_000
    """Maximum characters of a tool result or resource. The rest is replaced by a note."""
    max_parallel: int = 8
    """Maximum concurrent tool calls; further ones wait."""
    max_attempts: int = 5
    """Maximum attempts of one request, if the model is busy or its response is incomplete."""
    longest_wait: float = 60.0
    """Maximum seconds between attempts. If the API requests more, the answer ends."""
