"""A server behind a proxy: the connection to it, calls through it, and whom it may ask.

The calls of each session have a connection of their own: what the server keeps for a session is its caller's alone, and
what it asks goes to that caller. A server that is a program runs once, for all, unless a `StatefulProxyClient` wants
one for each; callers without a session share a connection, too. Where several call over one, nobody can say whose
question it is, and the server hears that. Credentials and other headers of callers are not passed on.
"""

import asyncio
import inspect
import json
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from millstream._protocol.errors import INTERNAL_ERROR, ProtocolError
from millstream._protocol.errors import ToolError as EngineToolError
from millstream._protocol.json_schema import is_object
from millstream._protocol.questions import CreateMessageRequestParams, Root
from millstream._protocol.revisions import NEWEST_HANDSHAKE
from millstream._protocol.rounds import InputRequired
from millstream.client._client import Client
from millstream.client._errors import ClientError, Failure, UnknownVersion
from millstream.client._incoming import LogMessage
from millstream.client._options import Options
from millstream.client._questions import Question
from millstream.compat._pydantic_parts import BaseModel
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._exceptions import ToolError
from millstream.compat.fastmcp._injection import current
from millstream.compat.fastmcp._lines import Lines

logger = logging.getLogger("millstream")

T = TypeVar("T")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class _Caller:
    """A call that waits for the server behind."""

    def __init__(self, context: Context[Any, Any, Any]) -> None:
        self.context = context
        self.session: Any = context
        with suppress(ValueError):  # a call of the program itself has none
            self.session = context.session_key or (context.transport if context.transport == "stdio" else context)
        self.unanswered: asyncio.Future[InputRequired] = asyncio.get_running_loop().create_future()
        """The caller has to be asked between two rounds of the call."""


class Behind:
    """The server behind a proxy.

    Args:
        target: what `millstream.Client` takes, or a value of another library that names such a thing.

    Raises:
        TargetError: it names no server.
    """

    def __init__(self, target: Any) -> None:
        self._callers: list[_Caller] = []
        self._find = target if inspect.iscoroutinefunction(target) else None
        self._target: Any = None if self._find else target
        self._client: Client | None = None
        self._lines = Lines(self._connect)
        self._apart = False
        """Each session has a connection of its own."""
        if self._find is None:
            self._make(None)  # a target that means nothing is an error now

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[Client]:
        """Connected inside the block.

        In the handshake era, if the server knows it: there, servers of every library can ask whom they serve. A
        `ProxyClient` with ``mode="auto"`` takes the newest revision.

        Raises:
            ClientError: it can't be reached.
        """
        async with AsyncExitStack() as stack:
            if self._find is not None:
                self._target = await self._find()
            stateful = isinstance(self._target, StatefulProxyClient)
            self._apart = stateful or not _is_program(target_of(self._target))
            client = await self._connect()
            stack.push_async_exit(client)
            stack.push_async_callback(self._lines.close)
            self._client = client
            try:
                yield client
            finally:
                if self._client is client:
                    self._client = None

    async def _connect(self, session: str | None = None) -> Client:
        """A connection for all, or for a session."""
        newest = getattr(self._target, "mode", None) == "auto"
        client = self._make(None if newest else NEWEST_HANDSHAKE.date, session)
        try:
            return await client.__aenter__()
        except UnknownVersion:
            client = self._make(None, session)
        return await client.__aenter__()

    def _make(self, revision: str | None, session: str | None = None) -> Client:
        return Client(
            target_of(self._target),
            revision=revision,
            timeout=math.inf,  # the caller says how long it waits
            elicit=partial(self._elicit, session),
            sample=partial(self._sample, session),
            roots=partial(self._roots, session),
            on_log=partial(self._log, session),
            options=_options(self._target),
        )

    @property
    def client(self) -> Client:
        """The connection.

        Raises:
            ToolError: there is none at the moment.
        """
        if self._client is None:
            raise ToolError("The server behind this proxy can't be reached now. Try again.")
        return self._client

    # Calls

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a tool, as it is on the wire."""
        context = current.get()

        async def told(value: float, total: float | None, message: str | None) -> None:
            await context.report_progress(value, total, message)

        meta = _passed_on(context)
        return _decode(await self._through(lambda client: client.conversation.call(tool, arguments, told, 0, meta)))

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The result of another request."""
        context = current.get(None)
        meta = None if context is None else _passed_on(context)
        given = {**params, "_meta": meta} if meta else params
        return await self._through(lambda client: client.request(method, given))

    async def _through(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        """What the server answers; if the caller has to be asked first, its round ends here.

        Raises:
            ProtocolError: the server's own error.
            ToolError: there's no answer.
        """
        caller = _Caller(current.get(None) or Context())
        if not self._apart or not isinstance(caller.session, str):
            return await self._answered(caller, ask(self.client))
        try:
            client = await self._lines.take(caller.session)
        except ClientError as error:
            raise ToolError(str(error)) from error
        try:
            return await self._answered(caller, ask(client))
        finally:
            self._lines.release(caller.session)

    async def _answered(self, caller: _Caller, asking: Awaitable[T]) -> T:
        self._callers.append(caller)
        answer = asyncio.ensure_future(asking)
        try:
            await asyncio.wait((answer, caller.unanswered), return_when=asyncio.FIRST_COMPLETED)
            if caller.unanswered.done():
                raise caller.unanswered.result()
            return await answer
        except Failure as error:
            raise ProtocolError(error.code, error.message, error.data) from error
        except ClientError as error:
            raise ToolError(str(error)) from error
        finally:
            self._callers.remove(caller)
            answer.cancel()
            await asyncio.wait((answer,))

    # Questions and messages of the server

    def _caller(self, session: str | None) -> _Caller:
        """Whose call the server speaks about; on a connection of one session, it's that one's."""
        here = current.get(None)
        callers = [each for each in self._callers if session is None or each.session == session]
        mine = [each for each in callers if each.context is here] or callers
        if len({each.session for each in mine}) != 1:
            raise ProtocolError(INTERNAL_ERROR, "Several callers share this connection: it's unclear whom to ask")
        return mine[-1]

    async def _asked(self, session: str | None, ask: Callable[[Context[Any, Any, Any]], Awaitable[T]]) -> T:
        caller = self._caller(session)
        try:
            return await ask(caller.context)
        except InputRequired as questions:
            if not caller.unanswered.done():
                caller.unanswered.set_result(questions)
            raise ProtocolError(INTERNAL_ERROR, "The question is on its way") from None
        except EngineToolError as error:  # what the caller said instead of an answer
            raise ProtocolError(INTERNAL_ERROR, str(error)) from error

    async def _elicit(self, session: str | None, question: Question) -> Any:
        async def ask(context: Context[Any, Any, Any]) -> Any:
            if question.url:
                answer = await context.session.elicit_url(question.message, question.url, question.elicitation_id or "")
                return True if answer.action == "accept" else answer.action
            form = dict(question.requested_schema or {})
            answer = await context.session.elicit_form(question.message, form)
            return answer.content if answer.action == "accept" else answer.action

        return await self._asked(session, ask)

    async def _sample(self, session: str | None, request: CreateMessageRequestParams) -> Any:
        return await self._asked(
            session,
            lambda context: context.session.engine.sample(
                request.messages,
                max_tokens=request.max_tokens,
                system=request.system_prompt,
                temperature=request.temperature,
                stop_sequences=request.stop_sequences,
                preferences=request.model_preferences,
                tools=request.tools,
                tool_choice=request.tool_choice,
            ),
        )

    async def _roots(self, session: str | None) -> list[Root]:
        return await self._asked(session, lambda context: context.session.engine.roots())

    async def _log(self, session: str | None, message: LogMessage) -> None:
        try:
            context = self._caller(session).context
        except ProtocolError:
            logger.info("%s", message.data)
            return
        data: Any = message.data
        if not (is_object(data) and isinstance(data.get("msg"), str)):
            data = {"msg": data if isinstance(data, str) else json.dumps(data)}
        await context.log(data["msg"], level=message.level, logger_name=message.logger, extra=data.get("extra"))


class ProxyClient:
    """Where a proxy leads, as fastmcp's class of that name: a URL, a command, a script or a configuration.

    Args:
        target: that.
        mode: ``"auto"`` speaks the newest revision with it, if it can.
        options: `client_info` is how the proxy introduces itself.
    """

    def __init__(self, target: Any = None, mode: str = "legacy", **options: Any) -> None:
        self.target: Any = options.pop("transport", target)
        self.mode = mode
        self.client_info: Any = options.pop("client_info", None)


class StatefulProxyClient(ProxyClient):
    """The same, with a connection for each session in front: ``FastMCPProxy(client_factory=client.new_stateful)``."""

    def new_stateful(self) -> "StatefulProxyClient":
        """What a proxy calls to know where it leads."""
        return self


def called(target: Any) -> Any:
    """What a program's plain function says; anything else is itself."""
    plain = (inspect.isfunction(target) or inspect.ismethod(target)) and not inspect.iscoroutinefunction(target)
    return target() if plain else target


def _is_program(target: Any) -> bool:
    """Whether what our client takes for a target starts a process."""
    if isinstance(target, str):
        return not target.startswith(("http://", "https://", "ws://", "wss://"))
    if is_object(target):
        servers: dict[str, Any] = target.get("mcpServers") or {}
        return any("command" in each for each in servers.values())
    return isinstance(target, list | tuple | Path)


def _options(target: Any) -> Options:
    """The limits of the connection, and how the proxy introduces itself, where the program says so."""
    info = getattr(target, "client_info", None) or getattr(target, "_session_kwargs", {}).get("client_info")
    name, version = ("millstream", "") if info is None else (str(info.name), str(info.version))
    return Options(name=name, version=version, connect_timeout=30, max_pages=10_000, cache=False)


def _passed_on(context: Context[Any, Any, Any]) -> dict[str, Any]:
    """`_meta` of a call without what is about this connection only."""
    found: dict[str, Any] = {} if context.meta is None else dict(context.meta.items())
    return {
        name: value
        for name, value in found.items()
        if name != "progressToken" and not name.startswith("io.modelcontextprotocol/")
    }


def target_of(target: Any) -> Any:
    """What our client takes for a value that a program gives to a proxy.

    A server of the door is itself; clients and transports of fastmcp are read for where they lead.

    Raises:
        TypeError: it is a client of ours, which is connected by itself.
    """
    if isinstance(target, Client):
        raise TypeError("A proxy makes its own client: give it the URL or the command instead of a millstream.Client")
    target = getattr(target, "target", target)  # of a `ProxyClient`
    target = getattr(target, "transport", target)  # of fastmcp's clients
    target = getattr(target, "server", target) if not hasattr(target, "engine") else target  # one in this process
    if hasattr(target, "engine"):
        target.configure()
        return target.engine
    if isinstance(getattr(target, "url", None), str) and not isinstance(target, str):
        headers = {str(name): str(value) for name, value in dict(getattr(target, "headers", None) or {}).items()}
        return {"mcpServers": {"behind": {"url": target.url, "headers": headers}}}
    if hasattr(target, "command"):
        words = {name: getattr(target, name, None) for name in ("command", "args", "env", "cwd")}
        return {"mcpServers": {"behind": {name: value for name, value in words.items() if value}}}
    if isinstance(target, BaseModel):  # a configuration
        return target.model_dump(mode="json", by_alias=True, exclude_none=True)
    return str(target) if type(target).__name__ == "AnyUrl" else target


def several(target: Any) -> dict[str, Any]:
    """The servers of a configuration, by name, where it has more than one; empty for anything else."""
    if inspect.iscoroutinefunction(target):
        return {}
    found = target_of(target)
    servers: Any = found.get("mcpServers") if is_object(found) else None
    if not is_object(servers) or len(servers) < 2:
        return {}
    return {name: {"mcpServers": {name: server}} for name, server in servers.items()}
