"""What happens while an agent answers, in order. Each event is also a line of a transcript, by its `type`."""

from typing import Any, Literal

from msgspec import Struct


class Happened(Struct, frozen=True, tag_field="type", rename="camel"):
    """The base of every event."""


class Said(Happened, frozen=True, tag="said"):
    """The person said something; `context` names the resources or the prompt that went along.

    Example:
        ``case Said(): log(event)``
    """

    text: str
    context: tuple[str, ...] = ()


class Asking(Happened, frozen=True, tag="asking"):
    """The model is asked. ``case Asking(): spinner.start()``"""

    round: int
    messages: int
    tools: int


class Delta(Happened, frozen=True, tag="delta"):
    """A piece of the answer's text. ``case Delta(text=text): print(text, end="")``"""

    text: str


class Answered(Happened, frozen=True, tag="answered"):
    """The text of one round, whole. A model may talk before it calls tools.

    Example:
        ``case Answered(text=text): print(text)``
    """

    text: str


class Waiting(Happened, frozen=True, tag="waiting"):
    """The model is busy or broke off, and is asked again after a pause.

    Example:
        ``case Waiting(reason=reason): print(reason)``
    """

    seconds: float
    attempt: int
    """Of the request that failed; 1 is the first."""
    reason: str
    void: bool = False
    """Whether pieces of text were given that no longer count."""


class Calling(Happened, frozen=True, tag="calling"):
    """A tool is called. ``case Calling(tool=tool, arguments=arguments): print(tool, arguments)``"""

    id: str
    server: str
    tool: str
    arguments: dict[str, Any]


class Progressed(Happened, frozen=True, tag="progressed"):
    """A tool says how far it is. ``case Progressed(): bar.show(event)``"""

    id: str
    value: float
    total: float | None = None
    message: str | None = None


Outcome = Literal["done", "error", "refused", "invalid"]


class Returned(Happened, frozen=True, tag="returned"):
    """What the model hears about a call. ``case Returned(): print(event)``"""

    id: str
    server: str
    tool: str
    text: str
    outcome: Outcome = "done"
    """``done``; ``error`` of the tool or its server; ``refused`` by the person; ``invalid``: no such tool, or
    arguments that can't be read."""


class Sampled(Happened, frozen=True, tag="sampled"):
    """A server used the model. ``case Sampled(): log(event)``"""

    server: str
    text: str


class Finished(Happened, frozen=True, tag="finished"):
    """The answer is over. ``case Finished(): print()``"""

    reason: Literal["done", "rounds", "tokens", "length", "filtered"]
    """``done``; a limit of ours, ``rounds`` or ``tokens``; or the model's: ``length``, ``filtered``."""
    rounds: int
    tokens: int


Event = Said | Asking | Delta | Answered | Waiting | Calling | Progressed | Returned | Sampled | Finished
