"""`BlockingClient` is a client for programs without `async`."""

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, Self, TypeVar, Unpack

from millstream._copies import NotCopyable
from millstream._suggestions import no_attribute
from millstream._tasks import LoopThread, make_blocking
from millstream.client._client import ELSEWHERE, Client, ClientArguments
from millstream.client._errors import ClientError
from millstream.client._requests import ServerInfo
from millstream.client._targets import Target

T = TypeVar("T")

_ASYNCHRONOUS = dict.fromkeys(
    ("events", "tasks", "watch"),
    "Use `Client` for it: `async with Client(…) as client:`.",
)
_ELSEWHERE = {
    name: advice.replace("async with Client", "with BlockingClient").replace("await ", "")
    for name, advice in ELSEWHERE.items()
} | _ASYNCHRONOUS
"""Name in other packages, or of `Client` -> its replacement here."""
_NOT_CONNECTED = "The client isn't connected. Use `with BlockingClient(…) as client:`."


class BlockingClient(NotCopyable):
    """A blocking `Client`: ``with BlockingClient("shop.py") as c: print(c.call("add", a=1, b=2).text)``.

    It has the methods of `Client`, and each one blocks until its result is available. Lists are returned in full.
    Handlers run in another thread. Use `Client` for `watch`, `tasks`, and `events`.

    Args:
        target: A URL, a command, a script, a `Server`, or a configuration with `mcpServers`.
        more: Keyword arguments for `Client`.
    """

    _COPY_ADVICE: ClassVar[str] = "Create another one with the same arguments."

    def __init__(self, target: Target, **more: Unpack[ClientArguments]) -> None:
        self._inner = Client(target, **more)
        self._loop = LoopThread("millstream-client", lambda: ClientError(_NOT_CONNECTED))
        """Runs inside the block."""
        self._depth = 0

    def __enter__(self) -> Self:
        self._loop.start()
        try:
            self._wait(self._inner.__aenter__())
        except BaseException:
            self._stop()
            raise
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        try:
            self._wait(self._inner.__aexit__(*exc))
        finally:
            self._stop()

    @property
    def server(self) -> ServerInfo:
        """Name, version, and other information about the server."""
        return self._inner.server

    @property
    def revision(self) -> str:
        """Date of the negotiated revision."""
        return self._inner.revision

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The server's capabilities."""
        return self._inner.capabilities

    @property
    def server_extensions(self) -> Mapping[str, Any]:
        """Settings of each extension that the server announced, by identifier."""
        return self._inner.server_extensions

    @property
    def instructions(self) -> str:
        """The server's instructions for a language model."""
        return self._inner.instructions

    @property
    def transport(self) -> str:
        """Name of the transport, as in `Client.transport`."""
        return self._inner.transport

    call: Final = make_blocking(Client.call)
    tools: Final = make_blocking(Client.tools)
    resources: Final = make_blocking(Client.resources)
    templates: Final = make_blocking(Client.templates)
    prompts: Final = make_blocking(Client.prompts)
    read: Final = make_blocking(Client.read)
    prompt: Final = make_blocking(Client.prompt)
    complete: Final = make_blocking(Client.complete)
    skills: Final = make_blocking(Client.skills)
    skill: Final = make_blocking(Client.skill)
    read_skill: Final = make_blocking(Client.read_skill)
    request: Final = make_blocking(Client.request)
    notify: Final = make_blocking(Client.notify)
    ping: Final = make_blocking(Client.ping)
    set_log_level: Final = make_blocking(Client.set_log_level)
    roots_changed: Final = make_blocking(Client.roots_changed)

    # Names in other MCP libraries, as in `Client`

    call_tool: Final = make_blocking(Client.call_tool)
    list_tools: Final = make_blocking(Client.list_tools)
    list_resources: Final = make_blocking(Client.list_resources)
    list_resource_templates: Final = make_blocking(Client.list_resource_templates)
    list_prompts: Final = make_blocking(Client.list_prompts)
    read_resource: Final = make_blocking(Client.read_resource)
    get_prompt: Final = make_blocking(Client.get_prompt)

    if not TYPE_CHECKING:  # type checkers would accept `async with`, and every name

        async def __aenter__(self) -> NoReturn:
            raise TypeError("BlockingClient blocks: write `with`, or use Client from millstream.client.")

        async def __aexit__(self, *exc: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _ELSEWHERE)

    def _wait(self, needed: Awaitable[T]) -> T:
        return self._loop.wait(needed)

    def _stop(self) -> None:
        if not self._depth:
            self._loop.stop()
