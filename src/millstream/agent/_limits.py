"""Limits of one answer."""

from msgspec import Struct

from millstream._protocol.suggestions import SuggestionMeta


class Limits(Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Limits of one answer. ``Agent(model, ["shop.py"], limits=Limits(max_rounds=5))``"""

    max_rounds: int = 20
    """Maximum requests to the model: one, and another one after each set of tool calls."""
    max_tokens: int = 0
    """Maximum tokens of all rounds together, including prompts; 0 for no limit. The round that reaches it is the
    last.
    """
    max_result: int = 50_000
    """Maximum characters of one tool result or resource for the model, followed by a note about the rest."""
    max_parallel: int = 8
    """Maximum concurrent tool calls; further ones wait."""
    max_attempts: int = 5
    """Maximum attempts of one request to a model that is busy or breaks off."""
    longest_wait: float = 60.0
    """Maximum pause in seconds. If an API demands a longer one, the answer ends."""
