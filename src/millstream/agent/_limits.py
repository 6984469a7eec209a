"""How far one answer may go."""

from msgspec import Struct

from millstream._protocol.suggestions import SuggestionMeta


class Limits(Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Bounds of one answer, whatever the model wants. ``Agent(model, ["shop.py"], limits=Limits(max_rounds=5))``"""

    max_rounds: int = 20
    """How often the model is asked: once, and once more after each set of tool calls."""
    max_tokens: int = 0
    """Tokens of all rounds together, prompts included; 0 means no bound. The round that reaches it is the last."""
    max_result: int = 50_000
    """Characters of one tool result or resource that the model sees; it's told how much is missing."""
    max_parallel: int = 8
    """Tool calls that run at once; further ones wait."""
    max_attempts: int = 5
    """How often one request is sent to a model that's busy or breaks off."""
    longest_wait: float = 60.0
    """Seconds. An API that wants a longer pause ends the answer."""
