"""Asks a model for the time. The model doesn't know it, but it may use the tool of a remote MCP server.

``python3 mcp_client_demo.py --debug`` shows each step, and each message with what it's for. `.env` has the addresses
and keys; see `.env.example`.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path

from millstream.agent import (
    Agent,
    AgentError,
    AssistantMessage,
    Configuration,
    ModelRetry,
    RoundStart,
    ToolEnd,
    ToolStart,
)
from millstream.client import AccessDenied, ClientError, ConnectFailed

ENV = Path(__file__).with_name(".env")


# region: ask
async def ask(question: str, configuration: Configuration, *, debug: bool = False) -> str:
    """The model's answer."""

    def step(text: str) -> None:
        if debug:
            print(f"[DEBUG] {text}", file=sys.stderr)

    server = configuration.server()  # 1. read the address and the key
    if server is None:
        raise AgentError("MCP_SERVER_URL isn't set. Copy .env.example to .env, and fill it in.")
    model = configuration.model()
    step(f"Model {model.name} at {model.url}, MCP server {server.target}")

    answer = ""
    async with Agent(model, [server]) as agent:  # 2. connect, with the key; 3. initialize the session
        client = agent.servers[0].client
        step(f"Connected to {client.server.name} ({client.transport}, {client.revision}): auth OK")
        step(f"Tools: {', '.join(tool.name for tool in await agent.tools())}")  # 4. what the server offers
        async for event in agent.say(question):  # 5. the dialog of model and tools
            match event:
                case RoundStart(round=number):
                    step(f"Asking the model (round {number})")
                case ToolStart(tool=tool, arguments=arguments):
                    step(f"The model calls {tool} {arguments}")
                case ToolEnd(tool=tool, text=text):
                    step(f"{tool} says: {text}")
                case ModelRetry(reason=reason, seconds=seconds):
                    step(f"{reason} Waiting for {seconds:g} s")
                case AssistantMessage(text=text):
                    answer = text
    return answer


# endregion


# region: explain
MESSAGES = "millstream.client.messages"
REQUESTS = {  # method -> what its first message is for, and the later ones
    "server/discover": ["does the server speak 2026-07-28, which has no sessions?"],
    "initialize": ["if not: begin a session over Streamable HTTP", "if that isn't there: over HTTP+SSE"],
    "notifications/initialized": ["the client is ready; nothing responds to this"],
    "tools/list": ["which tools are there?", "again before each round, because tools can change"],
    "tools/call": ["run the tool that the model chose"],
}
RESULTS = {  # member -> what a result with it is
    "supportedVersions": "yes, and these are its revisions",
    "protocolVersion": "the revision that the server chose, and what it can do",
    "tools": "the tools, with the JSON Schema of their arguments",
    "content": "the tool's result, which goes to the model",
}


class Explanations(logging.Formatter):
    """Adds to each message what it's for."""

    seen = Counter[str]()

    def format(self, record: logging.LogRecord) -> str:  # type: ignore[explicit-override]  # Python 3.11 has none
        line = super().format(record)
        if record.name != MESSAGES:
            return line
        message = json.loads(record.getMessage().partition(" ")[2])
        method = message.get("method", "")
        texts = REQUESTS.get(method) or [text for member, text in RESULTS.items() if member in message]
        self.seen[method] += 1
        return f"{line}  <- {texts[min(self.seen[method], len(texts)) - 1]}" if texts else line


# endregion


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("question", nargs="?", default="What time is it?")
    options.add_argument("--debug", action="store_true", help="show each step and message")
    chosen = options.parse_args()
    if chosen.debug:
        logging.basicConfig()
        logging.getLogger().handlers[0].setFormatter(Explanations("[DEBUG] %(message)s"))
        logging.getLogger(MESSAGES).setLevel("DEBUG")
    try:
        configuration = Configuration.load(ENV, os.environ)
        print(asyncio.run(ask(chosen.question, configuration, debug=chosen.debug)))
    except AccessDenied as exc:
        sys.exit(f"Error: {exc.message} Put the server's key into .env, as MCP_SERVER_AUTH_KEY.")
    except ConnectFailed as exc:
        sys.exit(
            f"Error: {exc}\nTo start the server, in another terminal: python3 mcp_server.py --auth-key my_secret_key"
        )
    except (AgentError, ClientError) as exc:
        sys.exit(f"Error: {exc}")


if __name__ == "__main__":
    main()
