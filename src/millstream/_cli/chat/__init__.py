"""``millstream chat``: ask one question, or have a conversation, with a model that uses the tools of servers."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import structs

from millstream._cli.chat.conversation import AnswerStopped, ChatSession, ConsolePrompts, read_line
from millstream._cli.chat.screen import (
    DebugScreen,
    JsonScreen,
    PlainScreen,
    Screen,
    TerminalScreen,
    steps_of_configuration,
    steps_of_connection,
)
from millstream._cli.connect_options import (
    DEFAULTS,
    DENIED,
    FAILED,
    UNREACHABLE,
    ConnectOptions,
    auth_for,
    explain,
    status_of,
)
from millstream._cli.errors import close_stderr
from millstream._cli.program import Json
from millstream._cli.signals import INTERRUPTED
from millstream._cli.tables import one_line
from millstream._http.hosts import is_loopback
from millstream.agent import (
    Agent,
    AgentError,
    Configuration,
    ConfigurationError,
    Limits,
    ModelAuthError,
    ModelUnreachable,
    ServerConfig,
)
from millstream.client import ClientError, Options
from millstream.client._targets import Remote, find_server, mcp_servers, needs_gateway, read_json


def chat(  # noqa: PLR0913  the options of the command
    *servers: Annotated[str, Parameter(name="SERVER")],
    message: Annotated[str, Parameter(alias="-m", metavar="TEXT", allow_leading_hyphen=True)] = "",
    model: Annotated[str, Parameter(metavar="NAME")] = "",
    api_url: Annotated[str, Parameter(metavar="URL")] = "",
    system: Annotated[str, Parameter(allow_leading_hyphen=True, metavar="TEXT")] = "",
    yes: Annotated[bool, Parameter(alias="-y")] = False,
    max_rounds: Annotated[int, Parameter(validator=Number(gte=1))] = Limits().max_model_requests,
    max_tokens: Annotated[int, Parameter(validator=Number(gte=0))] = Limits().max_tokens,
    env_file: Annotated[str, Parameter(metavar="FILE")] = "",
    debug: bool = False,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Talk to a model that uses the tools of one or more servers.

    The API comes from API_URL and API_KEY in `.env` or the environment, or from OPENAI_API_KEY, or from
    AZURE_OPENAI_ENDPOINT, AZURE_OPENAI_API_KEY, and OPENAI_API_VERSION, and the model from --model or DEFAULT_MODEL.
    The environment takes precedence over `.env`. A model such as anthropic:claude-sonnet-4-5 or google:gemini-2.5-pro
    uses the key of its provider, such as ANTHROPIC_API_KEY. MCP_SERVER_AUTH_KEY is only sent to the server of
    MCP_SERVER_URL.

    You're asked before tools run that aren't marked as read-only. With several servers, or one on another machine,
    you're also asked once for each tool that is.

    **Examples**

    - `millstream chat shop.py`

    - `millstream chat http://127.0.0.1:8000/mcp -m "What time is it?"`

    - `git diff | millstream chat "uvx mcp-server-git" --yes --json`

    In a conversation, /help lists the commands.

    Args:
        servers: URLs, commands in quotes, .py or .js files, or .json files with mcpServers; default: MCP_SERVER_URL.
        message: Ask this, print the answer, and exit. Or pipe text to standard input.
        model: The model: gpt-4.1, anthropic:claude-sonnet-4-5, a deployment.
        api_url: URL of an OpenAI-compatible API: http://127.0.0.1:11434/v1
        system: System prompt for the model.
        yes: Allow every tool without asking.
        max_rounds: Maximum requests to the model for one answer.
        max_tokens: Maximum tokens of one answer, or 0 for no limit.
        env_file: Read the configuration from this file. [default: .env]
        debug: Show each step and message.
    """
    question = message or ("" if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "replace").strip())
    reach = partial(
        ServerConfig,
        timeout=options.timeout,
        options=Options(env=options.variables, auth=auth_for(options.login)),
        revision=options.revision or None,
    )
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    usual = JsonScreen() if json else TerminalScreen() if terminal else PlainScreen()
    screen: Screen = DebugScreen(usual) if debug else usual
    try:
        if not question and not sys.stdin.isatty():
            raise ConfigurationError(
                "There's no question, and no terminal to ask for one. Use -m TEXT, or send text through a pipe."
            )
        configuration = Configuration.load(env_file or ".env", os.environ, required=bool(env_file))
        places = _places(servers, reach, options.headers(), configuration)
        found = find_server(places[0].target, env={}, cwd=None)
        remote = isinstance(found, Remote) and not is_loopback(found.url.host)
        if len(places) > 1 or remote:  # one server's output could reach another
            places = [structs.replace(each, trusts_hints=_trust_none) for each in places]
        chosen = configuration.model(model, api_url)
        if isinstance(screen, DebugScreen):
            screen.tell_all(steps_of_configuration(chosen, places))
        limits = Limits(max_model_requests=max_rounds, max_tokens=max_tokens)
        attended = sys.stdin.isatty() and sys.stderr.isatty()
        prompts = ConsolePrompts(screen, read_line if attended else None, yes=yes)
        with ChatSession(screen) as conversation:
            elicit = conversation.in_main(prompts.fill_in) if attended else None
            approve = conversation.in_main(prompts.approve)
            agent = Agent(chosen, places, system=system, limits=limits, approve=approve, elicit=elicit)
            tools = conversation.open(agent)
            if isinstance(screen, DebugScreen):
                screen.tell_all(steps_of_connection(agent, places, tools))
            if question:
                conversation.answer(agent.say(question))
                return
            with suppress(ImportError):  # for arrow keys and history
                import_module("readline")
            names = ", ".join(server.name for server in agent.servers)
            count = f"{len(tools)} tool{'' if len(tools) == 1 else 's'}"
            screen.note(f"{chosen.name} with {count} of {names}. /help lists commands, Ctrl-D exits.")
            screen.note(f"Your messages are sent to {chosen.url}.")
            conversation.converse(agent)
    except (ClientError, AgentError) as exc:
        text = " ".join(explain(exc)) if isinstance(exc, ClientError) else str(exc)
        screen.fail(one_line(text))
        raise SystemExit(_status(exc)) from exc
    except BrokenPipeError:  # `millstream chat … | head`
        close_stderr()
    except AnswerStopped as exc:
        raise SystemExit(INTERRUPTED) from exc


def _trust_none(tool: str) -> bool:
    return False


def _places(
    servers: Sequence[str], reach: Callable[..., ServerConfig], headers: Mapping[str, str], configuration: Configuration
) -> list[ServerConfig]:
    """Return the servers to use.

    Raises:
        AgentError, TargetError: No server is selected, or a file is invalid.
    """
    if not servers:
        place = configuration.server()
        if place is None:
            raise ConfigurationError("No server is selected. Specify one, or set MCP_SERVER_URL in .env.")
        return [reach(place.target, "", headers={**place.headers, **headers})]
    places: list[ServerConfig] = []
    for text in servers:
        if text.endswith(".json") and Path(text).is_file() and not needs_gateway(Path(text)):
            places += [reach(f"{text}#{name}", name, headers={}) for name in mcp_servers(read_json(Path(text)), text)]
        else:
            key = configuration.headers_for(text) if "://" in text else {}
            places.append(reach(text, "", headers={**key, **headers}))
    return places


def _status(exc: Exception) -> int:
    if isinstance(exc, ClientError):
        return status_of(exc)
    statuses: dict[type[Exception], int] = {
        ConfigurationError: 2,
        ModelAuthError: DENIED,
        ModelUnreachable: UNREACHABLE,
    }
    return statuses.get(type(exc), FAILED)
