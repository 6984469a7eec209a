"""A program that lets a model use `bookshop.py`: the person allows what it does, and the conversation is saved."""

# region: person
import asyncio
import os
from pathlib import Path
from typing import Any

from millstream.agent import (
    Agent,
    Approval,
    AssistantMessage,
    Configuration,
    Limits,
    Model,
    ModelError,
    ModelRetry,
    TextDelta,
    ToolStart,
)
from millstream.client import Question

BOOKSHOP = Path(__file__).with_name("bookshop.py")


def approve(request: Approval) -> bool:
    """Is asked before a tool runs that isn't marked as read-only, and before a server uses the model."""
    print(f"{request.server} wants {request.tool or 'the model'}: {dict(request.arguments)}")
    return request.kind == "tool"


def fill_in(server: str, question: Question) -> dict[str, Any]:
    """Fill in the form that a server sends: here without a person."""
    return {**question.defaults, "street": "1 Mill Lane", "city": "Bath"}


# endregion


# region: ask
async def ask(model: Model, question: str, transcript: Path) -> None:
    limits = Limits(max_model_requests=10)
    async with Agent(model, [BOOKSHOP], approve=approve, elicit=fill_in, limits=limits) as agent:
        async for event in agent.say(question):
            match event:
                case TextDelta(text=text):
                    print(text, end="", flush=True)
                case AssistantMessage():
                    print()
                case ToolStart(tool=tool, arguments=arguments):
                    print(f"{tool} {arguments}")
                case ModelRetry(reason=reason):
                    print(f"\n{reason}")
                case _:
                    pass
        agent.transcript.save(transcript)


# endregion


# region: context
async def review(model: Model, isbn: str) -> str:
    """A resource beside the sentence, then the messages of a prompt."""
    answers: list[str] = []
    async with Agent(model, {"shop": BOOKSHOP}) as agent:
        for events in (
            agent.say(f"Is this book long? @shop:book://{isbn}"),
            agent.prompt("review", {"isbn": isbn, "tone": "dry"}),
        ):
            answers += [event.text async for event in events if isinstance(event, AssistantMessage)]
    return "\n".join(answers)


# endregion


# region: main
def main() -> None:
    model = Configuration.load(".env", os.environ).model()
    try:
        asyncio.run(ask(model, "Order two copies of Middlemarch.", Path("order.jsonl")))
    except ModelError as exc:
        print(f"No answer: {exc}")


if __name__ == "__main__":
    main()
# endregion
