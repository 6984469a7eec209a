"""What happens while an agent answers, in order. Each event is also a line of a transcript, by its `type`."""

from typing import Any, Literal

from msgspec import Struct


class Happened(Struct, frozen=True, tag_field="type", rename="camel"):
    """The base of every event."""


class Said(Happened, frozen=True, tag="said"):
    """The person said something; `context` names the resources or the prompt that went along."""

    text: str
    context: tuple[str, ...] = ()


class Asking(Happened, frozen=True, tag="asking"):
    """The model is asked."""

    round: int
    messages: int
    tools: int


class Delta(Happened, frozen=True, tag="delta"):
    """A piece of the answer's text."""

    text: str


class Answered(Happened, frozen=True, tag="answered"):
    """The text of one round, whole. A model may talk before it calls tools."""

    text: str


class Waiting(Happened, frozen=True, tag="waiting"):
    """The model is busy or broke off, and is asked again after a pause."""

    seconds: float
    attempt: int
    """Of the request that failed; 1 is the first."""
    reason: str
    void: bool = False
    """Whether pieces of text were given that no longer count."""


class Calling(Happened, frozen=True, tag="calling"):
    """A tool is called."""

    id: str
    server: str
    tool: str
    arguments: dict[str, Any]


class Progressed(Happened, frozen=True, tag="progressed"):
    """A tool says how far it is."""

    id: str
    value: float
    total: float | None = None
    message: str | None = None


Outcome = Literal["done", "error", "refused", "invalid"]


class Returned(Happened, frozen=True, tag="returned"):
    """What the model hears about a call."""

    id: str
    server: str
    tool: str
    text: str
    outcome: Outcome = "done"
    """``done``; ``error`` of the tool or its server; ``refused`` by the person; ``invalid``: no such tool, or
    arguments that can't be read."""


class Sampled(Happened, frozen=True, tag="sampled"):
    """A server used the model."""

    server: str
    text: str


class Finished(Happened, frozen=True, tag="finished"):
    """The answer is over."""

    reason: Literal["done", "rounds", "tokens", "length", "filtered"]
    """``done``; a limit of ours, ``rounds`` or ``tokens``; or the model's: ``length``, ``filtered``."""
    rounds: int
    tokens: int


Event = Said | Asking | Delta | Answered | Waiting | Calling | Progressed | Returned | Sampled | Finished
