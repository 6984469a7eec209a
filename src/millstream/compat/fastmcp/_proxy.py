"""Proxies: a server that offers what another one offers, as long as that one offers it."""

import asyncio
import base64
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import quote

import msgspec

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import is_array
from millstream.client._client import Client
from millstream.client._errors import ClientError, Failure
from millstream.compat import _types as types
from millstream.compat._pydantic_parts import BaseModel
from millstream.compat.fastmcp._behind import Behind, called, several
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._prompts import Prompt, PromptResult
from millstream.compat.fastmcp._resources import Resource, ResourceContent, ResourceResult
from millstream.compat.fastmcp._signatures import Signature
from millstream.compat.fastmcp._templates import ResourceTemplate, UriPattern
from millstream.compat.fastmcp._tools import ToolResult
from millstream.compat.fastmcp._transforming import StandaloneTool
from millstream.compat.fastmcp._ways import Ways

logger = logging.getLogger("millstream")

_PATIENCE = 20.0
"""Seconds for which a server that starts waits for the one behind it; then what that offers comes later."""
_LONGEST = 60.0
"""Seconds between two attempts to reach it, at most."""


def bare_signature(name: str, description: str | None, schema: Mapping[str, Any]) -> Signature:
    """The signature of something that happens elsewhere."""

    async def elsewhere() -> None:
        """What the other side does."""

    return Signature(elsewhere, name, description or "", BaseModel, {}, None, {}, None, dict(schema))


def _shared(described: Any) -> dict[str, Any]:
    return {
        "title": described.title,
        "description": described.description,
        "icons": None
        if described.icons is None
        else [types.Icon.model_validate(_plain(each)) for each in described.icons],
        "meta": None if described.meta is None else dict(described.meta),
    }


def _plain(value: Any) -> Any:
    return None if value is None else msgspec.to_builtins(value)


def _annotations(described: Any) -> Any:
    found = _plain(described.annotations)
    return None if found is None else types.Annotations.model_validate(found)


class _Elsewhere:
    """What only a server can hide: its items come and go with those of the server behind."""

    def enable(self) -> None:
        """Not here; raises NotImplementedError with what to do instead."""
        raise NotImplementedError("Items of a proxy are shown by server.enable(names={…})")

    def disable(self) -> None:
        """Not here; raises NotImplementedError with what to do instead."""
        raise NotImplementedError("Items of a proxy are hidden by server.disable(names={…})")


class ProxyTool(_Elsewhere, StandaloneTool):
    """A tool of the server behind."""

    def __init__(self, described: Any, behind: Behind, ways: Ways) -> None:
        signature = bare_signature(described.name, described.description, described.input_schema)
        annotations = _plain(described.annotations)
        super().__init__(signature, ways, promise=None, annotations=annotations, **_shared(described))
        self._described = described
        self._behind = behind

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """What the result promises."""
        schema = self._described.output_schema
        return None if schema is None else dict(schema)

    async def _call(self, arguments: dict[str, Any], thread: RunInThread) -> ToolResult:
        wire = await self._behind.call(self._described.name, arguments)
        made = ToolResult.__new__(ToolResult)
        made.content = list(types.CallToolResult.model_validate({"content": wire.get("content") or []}).content)
        made.structured_content = wire.get("structuredContent")
        made.meta = wire.get("_meta")
        made.is_error = bool(wire.get("isError"))
        return made


async def _read(behind: Behind, uri: str) -> ResourceResult:
    found = await behind.request("resources/read", {"uri": uri})
    contents: list[dict[str, Any]] = found.get("contents") or []
    return ResourceResult(
        [ResourceContent(_content(each), each.get("mimeType"), each.get("_meta")) for each in contents],
        found.get("_meta"),
    )


def _content(wire: Mapping[str, Any]) -> str | bytes:
    return base64.b64decode(wire["blob"]) if "blob" in wire else str(wire.get("text", ""))


class ProxyResource(_Elsewhere, Resource):
    """A resource of the server behind."""

    behind: Any
    there: str

    async def read(self) -> Any:
        """What the server gives."""
        return await _read(self.behind, self.there)

    async def read_in(self, thread: RunInThread) -> Any:
        """The same."""
        return await self.read()


class ProxyTemplate(_Elsewhere, ResourceTemplate):
    """A template of the server behind."""

    def __init__(self, described: Any, behind: Behind, ways: Ways) -> None:
        signature = bare_signature(described.name, described.description, {})
        shared = {**_shared(described), "annotations": _annotations(described)}
        super().__init__(signature, described.uri_template, ways, mime_type=described.mime_type, **shared)
        self._there: str = described.uri_template
        self._behind = behind
        # As lists, because a comma between items and one of an item are not the same (RFC 6570 §3.2.8).
        self.lists = frozenset(self.query)
        self._matched = UriPattern(described.uri_template, self.lists)

    async def read_in(self, variables: Mapping[str, Any], thread: RunInThread) -> Any:
        """What the server gives for these values."""
        return await _read(self._behind, expanded(self._there, variables))


def expanded(template: str, values: Mapping[str, Any]) -> str:
    """The URI of a template's variables."""

    def part(found: re.Match[str]) -> str:
        operator, names = found[1], found[2].rstrip("*").split(",")
        if operator == "?":
            asked = [f"{name}={_listed(values[name])}" for name in names if name in values]
            return f"?{'&'.join(asked)}" if asked else ""
        safe = "/" if found[2].endswith("*") else ""
        return ",".join(quote(str(values[name.replace("-", "_")]), safe=safe) for name in names)

    return re.sub(r"\{(\??)([\w,*-]+)\}", part, template)


def _listed(value: Any) -> str:
    return ",".join(quote(str(each), safe="") for each in (value if is_array(value) else [value]))


class ProxyPrompt(_Elsewhere, Prompt):
    """A prompt of the server behind."""

    def __init__(self, described: Any, behind: Behind, ways: Ways) -> None:
        super().__init__(bare_signature(described.name, described.description, {}), ways, **_shared(described))
        self.arguments = [types.PromptArgument.model_validate(_plain(each)) for each in described.arguments or ()]
        self._there: str = described.name
        self._behind = behind

    async def result(
        self, arguments: Mapping[str, Any] | None = None, *, context: Any = None, thread: RunInThread | None = None
    ) -> PromptResult:
        """What the server gives."""
        found = await self._behind.request("prompts/get", {"name": self._there, "arguments": dict(arguments or {})})
        result = types.GetPromptResult.model_validate(found)
        return PromptResult(list(result.messages), result.description, found.get("_meta"))


class Proxy:
    """Keeps what one server offers the same as what the server behind it offers."""

    def __init__(self, server: Any, behind: Behind) -> None:
        self._server = server
        self._behind = behind
        self._shown: dict[str, dict[str, Any]] = {}
        """Kind -> key -> the description that it was made of."""
        self._instructions = ""
        """Those of the other server, where there are no own ones."""
        self.problem = ""
        """Why the other server can't be reached now; empty while it can."""
        self._users = 0
        self._ready: asyncio.Event | None = None
        self._following: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """It does so inside the block, which begins when the other server has said what it offers, or didn't answer.

        Blocks may overlap: that of the server, and those of a program's own calls.
        """
        ready = self._ready = self._ready or asyncio.Event()
        following = self._following = self._following or asyncio.create_task(self._follow(ready))
        self._users += 1
        try:
            try:
                await asyncio.wait_for(ready.wait(), _PATIENCE)
            except TimeoutError:
                logger.warning("%s: the server behind it takes long to start", self._server.name)
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._ready = self._following = None
                following.cancel()
                await asyncio.wait((following,))

    async def _follow(self, ready: asyncio.Event) -> None:
        wait = 1.0
        while True:
            try:
                async with self._behind.connected() as client:
                    await self._copy(client)
                    self.problem = ""
                    ready.set()
                    wait = 1.0
                    await self._watch(client)
            except ClientError as error:
                self.problem = str(error)
                logger.warning("%s: the server behind it can't be reached. %s", self._server.name, error)
            ready.set()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST)

    async def _watch(self, client: Client) -> None:
        try:
            async with client.watch() as changes:
                async for _ in changes:
                    await self._copy(client)
        except Failure:
            logger.debug("%s: the server behind it tells nobody of changes", self._server.name)
        await asyncio.Event().wait()

    async def _copy(self, client: Client) -> None:
        """Offer what the other server offers now."""
        ways, behind, definition = self._server.ways, self._behind, self._server.engine.definition
        if definition.instructions == self._instructions:
            definition.instructions = self._instructions = client.instructions

        def make(item: Callable[..., Any]) -> Callable[[Any], Any]:
            return lambda described: item(described, behind, ways)

        listed: list[tuple[str, Any, Callable[[Any], Any]]] = []
        can = client.capabilities
        if "tools" in can:
            listed += [("tools", each, make(ProxyTool)) for each in await client.tools(fresh=True)]
        if "resources" in can:
            listed += [("resources", each, self._resource) for each in await client.resources(fresh=True)]
            templates = await client.templates(fresh=True)
            listed += [("templates", each, make(ProxyTemplate)) for each in templates]
        if "prompts" in can:
            prompts = await client.prompts(fresh=True)
            listed += [("prompts", each, make(ProxyPrompt)) for each in prompts]
        try:
            self._offer(listed)
        except LocalError as error:
            logger.warning("%s: a change behind it needs a restart. %s", self._server.name, error)

    def _resource(self, described: Any) -> ProxyResource:
        shared = {**_shared(described), "annotations": _annotations(described)}
        mime_type = described.mime_type or "text/plain"
        return ProxyResource(
            uri=described.uri,
            name=described.name,
            mime_type=mime_type,
            behind=self._behind,
            there=described.uri,
            **shared,
        )

    def _offer(self, listed: list[tuple[str, Any, Callable[[Any], Any]]]) -> None:
        found: dict[str, dict[str, Any]] = {}
        for kind, described, make in listed:
            try:
                made = make(described)
            except (ValueError, TypeError) as error:
                self._pass_over(kind, described.name, error)
                continue
            found.setdefault(kind, {})[made.key] = (described, made)
        offered = self._server.offered
        for kind in ("tools", "resources", "templates", "prompts"):
            shown, wanted = self._shown.setdefault(kind, {}), found.get(kind, {})
            for key in [each for each in shown if each not in wanted or wanted[each][0] != shown[each]]:
                offered.remove(kind, key)
                del shown[key]
            for key, (described, made) in wanted.items():
                if key in getattr(offered, kind):  # the proxy's own come first
                    continue
                try:
                    offered.add(kind, made)
                except ValueError as error:  # where it's mounted, something has that name
                    self._pass_over(kind, key, error)
                    continue
                shown[key] = described

    def _pass_over(self, kind: str, name: str, error: Exception) -> None:
        logger.warning("%s: %s of the %s behind it can't be offered. %s", self._server.name, name, kind, error)


@asynccontextmanager
async def running(proxies: list[Proxy]) -> AsyncGenerator[None]:
    """What is behind these is there inside the block, though their servers may not run."""
    async with AsyncExitStack() as stack:
        for proxy in proxies:
            await stack.enter_async_context(proxy.running())
        yield


def put_behind(server: Any, target: Any, part_of: Callable[[str, Any], Any]) -> None:
    """Let a server offer what the target offers, which may be a function that gives it.

    Of several targets each has a server of its own, which `part_of` makes.

    Raises:
        TargetError: the target means no server.
    """
    target = called(target)
    parts = several(target)
    for name, part in parts.items():
        server.mount(part_of(name, part), name)
    if parts:
        return
    behind = Behind(target)
    proxy, definition = Proxy(server, behind), server.engine.definition
    around = definition.lifespan

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Any]:
        async with AsyncExitStack() as stack:
            value = None if around is None else await stack.enter_async_context(around())
            await stack.enter_async_context(proxy.running())
            yield value

    definition.lifespan = lifespan
    server.proxies.append(proxy)
    server.completion(_completing(behind))


def _completing(behind: Behind) -> Callable[..., Any]:
    async def complete(ref: Any, argument: Any, context: Any) -> Any:
        if "completions" not in behind.client.capabilities:
            return None
        params = {"ref": ref.model_dump(exclude_none=True), "argument": argument.model_dump()}
        if context is not None:
            params["context"] = context.model_dump()
        return types.Completion.model_validate((await behind.request("completion/complete", params))["completion"])

    return complete
