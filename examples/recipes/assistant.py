"""An assistant: a model answers a question with the bookshop's tools. Put the model's address and key into .env."""

import asyncio
import os
import sys

from millstream.agent import Agent, Approval, AssistantMessage, Configuration, Limits, ToolStart


def approve(request: Approval) -> bool:
    """Allow searches, and nothing else."""
    return request.tool == "search"


async def main(question: str) -> None:
    model = Configuration.load(".env", os.environ).model()
    async with Agent(model, ["bookshop.py"], approve=approve, limits=Limits(max_model_requests=10)) as agent:
        async for event in agent.say(question):
            match event:
                case ToolStart(tool=tool, arguments=arguments):
                    print(f"{tool} {arguments}", file=sys.stderr)
                case AssistantMessage(text=text) if text:
                    print(text)
                case _:
                    pass


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:])))
