"""Dispatch of calls: a `Dispatcher` finds the handler by method, and combines its result and the id into a response.

`Dispatcher.call` returns the JSON-RPC response, and `Dispatcher.outcome` only the result, for transports with their own
envelope. Failures are converted to the answers that the revision defines. This module has no knowledge of the
transport.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from copy import copy
from functools import partial
from time import perf_counter
from typing import Any, Protocol, cast

from msgspec import Struct

from millstream._protocol import revisions
from millstream._protocol.admission import initialize_result, method_not_found
from millstream._protocol.errors import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    OVERLOADED,
    Cancelled,
    CustomResult,
    Declined,
    LocalError,
    ProtocolError,
    ToolError,
    ToolUnavailable,
)
from millstream._protocol.jsonrpc import (
    MALFORMED,
    Json,
    RequestId,
    decoder,
    encode,
    refusal_message,
    result_message,
)
from millstream._protocol.metadata import SERVER_KEY
from millstream._protocol.principal import Principal, Share
from millstream._protocol.redaction import redact_foreign
from millstream._protocol.revisions import ALL, PER_REQUEST, Revision
from millstream._protocol.seal import InputRequired
from millstream._recent import Recent
from millstream._server.address import Address
from millstream._server.calls.call import RUNNING, SERVER_FAILURE, Call, Caller, CallFailure, granted_scopes
from millstream._server.calls.context import call_binding
from millstream._server.calls.idempotency import IdempotentCalls
from millstream._server.calls.parked_calls import ParkedCalls
from millstream._server.calls.questions import resolve_group
from millstream._server.calls.services import Services
from millstream._server.control import Control, Gate, Load, release_arguments
from millstream._server.features.registry import DISCOVER, Handler, Registry, RelayedServer
from millstream._server.features.tools import run_tool, run_with_timeout
from millstream._server.functions.msgspec_engine import NotJson
from millstream._server.refusals import REFUSED, find_refusal, refusal_error
from millstream._tasks import Tasks
from millstream._telemetry.logs import advise, shown_error, with_user_frames

_DISCOVER_TTL_MS = 3_600_000
"""Cache hint of `server/discover`."""
_MAX_MADE = 256
"""Maximum number of results that are kept, of which there's one for each revision and text of the instructions."""


class Instruction(Struct, frozen=True):
    """A part of the instructions for clients' models."""

    text: str
    reads: Callable[[Principal | None, frozenset[str] | None], bool] | None = None
    """``reads(principal, granted)`` returns whether a caller with these scopes reads it. None if every caller does."""
    upstream: str = ""
    """Name of the upstream that it's about, if any."""
    short_text: str = ""
    """Text for a set whose names have no prefixes."""


class ServerDescription:
    """The server's information about itself for `initialize` and `server/discover`, encoded once per revision.

    It depends on name, instructions, capabilities, and cache hints. Capabilities are only added, so their count shows
    whether the cache is stale; other changes clear it.
    """

    def __init__(self, registry: Registry, info: Json, instructions: str) -> None:
        self._registry = registry
        self._info = info
        self.instructions: tuple[Instruction, ...] = (Instruction(instructions),)
        """Instructions for the client's model. Call `forget` after a change."""
        # Prepared
        self._made = Recent[tuple[str, str, bool, str], bytes](_MAX_MADE)
        self._is_restricted = False
        """Whether some callers don't read all instructions."""
        self._cached_count = 0
        """Number of capabilities when the cache was filled."""

    def forget(self) -> None:
        """Clear the cache when the instructions or a capability's value have changed."""
        self._made.clear()
        self._is_restricted = any(each.reads is not None for each in self.instructions)

    def instruct(self, caller: Caller | None) -> str:
        """Return the instructions for a caller's model."""
        principal, granted = (None, None) if caller is None else (caller.principal, granted_scopes(caller))
        parts = (each.text for each in self.instructions if each.reads is None or each.reads(principal, granted))
        return "\n\n".join(filter(None, parts))

    def initialize(self, revision: Revision, caller: Caller | None = None, *, streams: bool = True) -> bytes:
        """Return the result of `initialize` for a caller. `streams` is as for `Registry.capabilities`."""
        made, text = self._cache(), self.instruct(caller) if self._is_restricted else ""
        key = ("initialize", revision.date, streams, text)
        if key not in made:
            offered = self._registry.capabilities(revision, streams=streams)
            made.keep(key, initialize_result(revision, offered, self._info, self.instruct(caller)))
        return made[key]

    def discover(self, revision: Revision, caller: Caller | None = None) -> bytes:
        """Return the members of the `server/discover` result for a caller."""
        made, text = self._cache(), self.instruct(caller) if self._is_restricted else ""
        key = ("server/discover", revision.date, True, text)
        if key not in made:
            registry = self._registry
            is_private = registry.private or self._is_restricted
            ttl_ms, private = registry.cache_hint(DISCOVER, _DISCOVER_TTL_MS, private=is_private)
            result: Json = {
                "supportedVersions": list(PER_REQUEST),
                "capabilities": registry.capabilities(revision),
                "ttlMs": ttl_ms,
                "cacheScope": "private" if private else "public",
            }
            if instructions := self.instruct(caller):
                result["instructions"] = instructions
            made.keep(key, encode(result)[1:-1])
        return made[key]

    def discover_meta(self, revision: Revision) -> Json:
        """Return the `_meta` of that result, with all information about the server. Other results repeat only the
        name.
        """
        return {SERVER_KEY: revisions.implementation(self._info, revision)}

    def _cache(self) -> Recent[tuple[str, str, bool, str], bytes]:
        """Return the cache for the current capabilities."""
        if self._cached_count != self._registry.capability_count:
            self._made.clear()
            self._cached_count = self._registry.capability_count
        return self._made


logger = logging.getLogger("millstream")

Observe = Callable[[Call, float, bytes], None]
"""``observe(call, seconds, answer)``."""


class RelayedError(ProtocolError):
    """Ends a call with another server's error, which isn't changed in any revision."""


_EXPLAINED_ERRORS = (NotJson, LocalError, ValueError)
"""Errors of our own checks. Their text is complete, so no traceback is needed."""
_HIDDEN = "; callers see only the incident. Raise ToolError to show them a message"
_SERVER_STOPPED = "The server stopped before the call was complete. Try again."
_IN_FLIGHT = "Invalid request: a request with this id is in flight"


class Around(Protocol):
    """Middleware around the handlers."""

    async def __call__(self, call: Call, handler: Handler, /) -> bytes:
        """Return the members of a call's result."""
        ...

    async def filter_list(self, kind: str, items: list[Json], call: Call) -> list[Json]:
        """Return descriptions as the hooks for lists change them for a caller."""
        ...


class Dispatcher:
    """Runs the calls at one address of a server: what's served there, and the calls that run at any address."""

    def __init__(
        self,
        registry: Registry,
        services: Services,
        *,
        info: Json,
        instructions: str = "",
        address: Address | None = None,
    ) -> None:
        self.address: Address = address or services.addresses[0]
        self.everywhere: list[Dispatcher] = [self]
        """The dispatcher of each address, the main one first."""
        self.registry: Registry = registry
        self.services: Services = services
        self.info: Json = info
        self.announcement: ServerDescription = ServerDescription(registry, info, instructions)
        """The results of `initialize` and `server/discover`."""
        self.gate: Gate | None = None
        """Limits. Called for every call; returns, or raises `ProtocolError`, immediately or when awaited."""
        self.around: Around | None = None
        self.observe: Observe | None = None
        """Called for every finished call."""
        self.begin: Callable[[Call], None] | None = None
        """Called for every call that starts, if tracing is on."""
        self.read_resource: Callable[[str, Call], Awaitable[Any]]
        """Reads a resource of this address as part of a call. Set by the handlers."""
        self._handlers: dict[str, Handler] = {}
        self._heads = {revision.date: _head(info, revision, None) for revision in ALL}
        self._tool_timeout = services.settings.tool_timeout
        services.parked = ParkedCalls(services)
        services.idempotent = IdempotentCalls(services)
        self.stopping: bool = False
        """Whether the server is shutting down. Running calls can be canceled at any time, without an answer."""
        self.calls: set[Call] = set()
        self.control: Control = Control(services.questions, services.peers)
        self.by_id: dict[tuple[str, RequestId], Call] = self.control.by_id
        """(scope, request id) -> call, for calls that a later message can cancel."""
        self.load: Load = Load(self.calls, services)
        self.notification_tasks: Tasks = Tasks()
        """The running handlers of notifications."""
        self._notification_share = Share(self.load.max_calls, each=self.load.max_each)

    def branch(self, registry: Registry, address: Address) -> "Dispatcher":
        """Return a dispatcher for another address, which shares the running calls. Add its handlers next."""
        other = copy(self)
        other.registry, other.address, other.around, other._handlers = registry, address, None, {}
        other.announcement = ServerDescription(registry, self.info, "")
        self.everywhere.append(other)
        return other

    @property
    def served(self) -> "list[Dispatcher]":
        """The dispatchers of the addresses that clients can reach, the one at the main path first."""
        found = {each.address: each for each in self.everywhere}
        return [found[each] for each in self.services.addresses]

    def stop(self) -> None:
        """Begin to shut down. See `stopping`."""
        for each in self.everywhere:
            each.stopping = True

    def find_address(self, name: str) -> "Dispatcher | None":
        """Return the dispatcher of a set, or of the main address if the name is empty."""
        return next((each for each in self.everywhere if each.address.name == name), None)

    def instruct(self, instructions: Iterable[Instruction]) -> None:
        """Set the instructions for clients."""
        self.announcement.instructions = tuple(instructions)
        self.announcement.forget()

    def introduce(self, info: Mapping[str, Any]) -> None:
        """Set the server's name, version, and other information for clients."""
        self.info.clear()
        self.info.update(info)
        self._heads.update((revision.date, _head(self.info, revision, None)) for revision in ALL)
        for each in self.everywhere:
            each.announcement.forget()

    def serve(self, handlers: Mapping[str, Handler]) -> None:
        """Add handlers by method."""
        self._handlers.update(handlers)

    def wrap(self, methods: Collection[str], around: Callable[[Handler, Call], Awaitable[bytes]]) -> None:
        """Serve methods through a function, which receives the handler and the call."""
        self._handlers.update({method: partial(around, self._handlers[method]) for method in methods})

    async def run_inside(self, call: Call, method: str, params: bytes) -> bytes:
        """Return the members of the result of another method, for a function that serves a call.

        Its caller, hooks, and questions are those of the call, and no gate sees it.

        Args:
            params: Its parameters as JSON.
        """
        call_binding(call)  # questions belong to the outer request
        outer = call.method, call.name, call.params, call.arguments
        call.method, call.name, call.params, call.arguments = method, "", params, None
        try:
            handler, around = _handler(self._handlers, self.registry, call), self.around
            return await (handler(call) if around is None else around(call, handler))
        finally:
            call.method, call.name, call.params, call.arguments = outer

    async def call(self, call: Call, scope: str = "") -> bytes:
        """Run one call and return its answer.

        Args:
            scope: The session or connection with later messages about the call. Ids are unique in it, except over HTTP,
                where each request has its own reply and some clients reuse ids. Only the first call can be canceled.

        Returns:
            The complete JSON-RPC response. It's empty if the caller canceled the call, because then there's no answer.
        """
        key = (scope, call.id)
        if scope and (self.by_id.setdefault(key, call) is not call or call.cancelled):
            if call.cancelled or call.transport != "http":
                return self._refuse_repeated(call, scope)
            scope = ""
        self.calls.add(call)
        call.services, call.dispatcher = self.services, self
        observe = self.observe
        started = perf_counter() if observe is not None else 0.0
        if self.begin is not None:
            self.begin(call)
        answer = b""
        try:
            answer = _wrap_envelope(call, await self._run(call))
        except BaseException as exc:
            answer = self._failure(call, exc)
        finally:
            call.over = True
            self.calls.discard(call)
            if scope:
                del self.by_id[key]
            if call.weight:
                release_arguments(call, self.services.bodies)
            if call.release is not None:
                call.release()
            if observe is not None:
                observe(call, perf_counter() - started, answer)
        if call.question_ids or call.tee is not None:
            await _conclude(call, answer)
        return answer

    def _refuse_repeated(self, call: Call, scope: str) -> bytes:
        """Return the answer for a call whose id is in use, or that was canceled before it ran."""
        self.abandon(call, scope)
        if call.cancelled:
            return b""
        peer = "" if call.origin is None else call.origin.peer
        over = self.services.request_limits.charge(call.principal, peer)
        return refusal_message(call.id, over or ProtocolError(INVALID_REQUEST, _IN_FLIGHT))

    async def _run(self, call: Call) -> bytes:
        """Run a call if the gate lets it pass, and return its result."""
        if self.gate is not None and call.task != RUNNING and (asked := self.gate(call)) is not None:
            await asked
        relayed, tool = self.registry.relayed, call.tool
        if relayed is not None and (result := await self._relay(call, relayed)):
            return result
        if tool is not None:
            timeout = self._tool_timeout if tool.timeout is None else tool.timeout
            if tool.asks and (parked := self.services.parked).may_ask(call):
                work = partial(run_tool, tool, call, timeout)
                members = await parked.run(call, work, replay=tool.replay, begun=not tool.asks_first)
            else:
                running = run_with_timeout(tool.run, call, call.arguments, timeout) if timeout else None
                members = tool.encode(await (running or tool.run(call.arguments, call)), call)
        else:
            handler, around = _handler(self._handlers, self.registry, call), self.around
            members = await (handler(call) if around is None else around(call, handler))
        if members.endswith(_ERROR) and call.method == "tools/call":
            call.failure = CallFailure("tool_error")
        head = self._heads[call.revision.date] if call.meta is None else _head(self.info, call.revision, call.meta)
        return b"%b%b}" % (head if members else head.removesuffix(b","), members)

    async def _relay(self, call: Call, relayed: RelayedServer) -> bytes:
        """Return the result of another server, or empty bytes if this server has to run the call."""
        timeout = self._tool_timeout if call.method == "tools/call" else 0
        relay = relayed.relay
        result = await (run_with_timeout(lambda _, each: relay(each), call, None, timeout) if timeout else relay(call))
        if call.method == "tools/call" and result.rfind(b'"isError"') >= 0 and _reports_error(result):
            call.failure = CallFailure("tool_error")
        return result

    async def outcome(self, call: Call) -> tuple[bytes, ProtocolError | None]:
        """Run one call and return its result (also of a failed tool) or error, without an envelope. A canceled call has
        neither.
        """
        call.bare = True
        result = await self.call(call)
        return result, None if call.failure is None else call.failure.error

    def abandon(self, call: Call, scope: str = "") -> None:
        """Forget a counted call that won't run, for example because its task was canceled before it began."""
        key = (scope, call.id)
        if self.by_id.get(key) is call:
            del self.by_id[key]
        release_arguments(call, self.services.bodies)

    def _failure(self, call: Call, exc: BaseException) -> bytes:
        """Return the answer for any error of a handler. A failing call gets an answer, unless it was canceled, and
        doesn't end the server.

        Raises:
            BaseException: An error that ends the call's own task.
        """
        if isinstance(exc, BaseExceptionGroup):
            exc = resolve_group(cast("BaseExceptionGroup[BaseException]", exc))
        if isinstance(exc, ProtocolError):
            return self._refuse(call, exc)
        if isinstance(exc, InputRequired):
            return self._input_required(call, exc)
        if isinstance(exc, CustomResult):
            return self._custom_result(call, exc)
        if isinstance(exc, REFUSED):
            return self._answer_refusal(call, exc)
        if isinstance(exc, ToolError | Declined | Cancelled):
            outcome = SERVER_FAILURE if isinstance(exc, ToolUnavailable) else "tool_error"
            return self._tool_error(call, str(exc) or type(exc).__name__, outcome=outcome)
        # A `CancelledError` has one of three senders. If the call was stopped (`Call.cancel`), the task only served to
        # stop it, so its cancellation is taken back and the call is answered. If the owner of the task canceled it,
        # because the client has disconnected or the server is stopping, the error has to propagate. Otherwise, the
        # function canceled itself or awaited something canceled, and the client is still waiting: that's an ordinary
        # failure.
        if isinstance(exc, asyncio.CancelledError | GeneratorExit):
            task, stopped = _task(), isinstance(exc, asyncio.CancelledError)
            if task is not None and stopped and call.cancelled:
                task.uncancel()
                return self._answer_stopped(call)
            if task is None or (
                stopped and task.cancelling() and (self.stopping or call.origin is None or call.origin.ends_call())
            ):
                call.cancelled = True
                self.services.questions.fail(call.question_ids or ())
                try:
                    raise exc
                finally:
                    del exc  # a cycle through its traceback would keep the request's body
        # The function caused the error: it raised it, canceled its own task, or awaited something canceled. This
        # includes KeyboardInterrupt, because Ctrl-C has a signal handler.
        return self._answer_failure(call, exc)

    def _answer_stopped(self, call: Call) -> bytes:
        """Return the answer of a stopped call."""
        if call.expired:
            return self._tool_error(call, "The call took too long.")
        if call.halted:
            return self._refuse(call, ProtocolError(OVERLOADED, _SERVER_STOPPED, status=503))
        call.failure = CallFailure("cancelled")
        return b""

    def _refuse(self, call: Call, exc: ProtocolError, incident: str = "") -> bytes:
        error = exc if isinstance(exc, RelayedError) else revisions.error(exc, call.revision)
        # The raised error's traceback refers to the call. Keeping it would keep the body.
        kept = ProtocolError(error.code, error.message, error.data, status=error.status, head=error.head)
        call.failure = CallFailure(str(error.code), kept, incident)
        return b"" if call.bare or _is_cancelled(call) else refusal_message(call.id, error)

    def _tool_error(self, call: Call, text: str, incident: str = "", outcome: str = SERVER_FAILURE) -> bytes:
        if call.method != "tools/call":
            return self._refuse(call, ProtocolError(INTERNAL_ERROR, text), incident)
        call.failure = CallFailure(outcome, None, incident)
        head = self._heads[call.revision.date]
        return _wrap_envelope(call, b'%b"content":[{"type":"text","text":%b}],"isError":true}' % (head, encode(text)))

    def _answer_failure(self, call: Call, exc: BaseException) -> bytes:
        if not logger.isEnabledFor(logging.DEBUG):
            exc = with_user_frames(exc, explained=_EXPLAINED_ERRORS)
        advise(exc)
        shown = self.services.settings.show_errors
        hidden = "" if shown or call.method != "tools/call" else _HIDDEN
        incident = _log_incident(call, f" failed{hidden}", exc)
        text = f"Internal error. The server's log has the details under incident {incident}."
        if shown:
            text = shown_error(exc)
        if isinstance(exc, LocalError):
            return self._refuse(call, ProtocolError(INTERNAL_ERROR, text), incident)
        return self._tool_error(call, text, incident)

    def _answer_refusal(self, call: Call, exc: Exception) -> bytes:
        """Return the answer for a function that couldn't use the store or the hub."""
        refusal, text = find_refusal(exc, "The call {} completed. Try again later.")
        incident = _log_incident(call, f" couldn't use the store: {exc}") if refusal.is_trouble else ""
        if call.method == "tools/call":
            answer = self._tool_error(call, text, incident, SERVER_FAILURE if refusal.can_retry else "tool_error")
            if call.failure is not None and refusal.can_retry:
                call.failure.refusal = refusal
            return answer
        return self._refuse(call, refusal_error(exc, text), incident)

    def _input_required(self, call: Call, exc: InputRequired) -> bytes:
        services = self.services
        rounds = call.asked_rounds = exc.rounds or call.rounds
        assert rounds is not None  # noqa: S101  the question created them
        try:
            state = rounds.seal(
                services.ring,
                bound=call_binding(call),
                expires_at=int(services.clock() + services.settings.input_timeout),
                nonce=services.nonce(),
                max_rounds=services.settings.max_rounds,
            )
        except ProtocolError as error:
            return self._refuse(call, error)
        except LocalError as error:  # the answers are too large for a state
            return self._answer_failure(call, error)
        result = {"resultType": "input_required", "inputRequests": exc.requests, "requestState": state}
        meta = encode({SERVER_KEY: revisions.implementation(self.info, call.revision, whole=False)})
        return _wrap_envelope(call, b'%b,"_meta":%b}' % (encode(result)[:-1], meta))

    def _custom_result(self, call: Call, exc: CustomResult) -> bytes:
        result = dict(exc.result)
        meta: Json = {**(call.meta or {}), **result.pop("_meta", {})}
        if call.revision.result_type:
            meta = {SERVER_KEY: revisions.implementation(self.info, call.revision, whole=False), **meta}
        answer = encode({**result, "_meta": meta} if meta else result)
        if result.get("isError") is True and call.method == "tools/call":
            call.failure = CallFailure("tool_error")
        return _wrap_envelope(call, answer)

    def notify(self, call: Call) -> None:
        """Run an extension's handler for a notification, as a task. There's no answer. The limits are the same as for
        calls. A notification beyond them is dropped and logged at debug level.
        """
        share, bodies = self._notification_share, self.services.bodies

        def release(_: object) -> None:
            share.leave(call.owner)
            release_arguments(call, bodies)

        if not share.take(call.owner):
            logger.debug("Dropped a client's %s: too many notifications are being handled.", call.method)
        elif not self.load.takes(call, len(call.params)):
            share.leave(call.owner)
            logger.debug("Dropped a client's %s: too much data is being handled.", call.method)
        else:
            self.notification_tasks.spawn(self._run_notification(call)).add_done_callback(release)

    async def _run_notification(self, call: Call) -> None:
        call.services, call.dispatcher = self.services, self
        try:
            if self.gate is not None and (asked := self.gate(call)) is not None:
                await asked
            handler = self.registry.notification_handler(call.method)
            if handler is not None:
                await handler(call)
        except (ProtocolError, ToolError) as exc:
            logger.debug("Refused a client's %s: %s", call.method, exc)
        except Exception:
            logger.exception("The handler of %s failed.", call.method)
        finally:
            call.over = True
            if call.release is not None:
                call.release()


def _log_incident(call: Call, what: str, exc: BaseException | None = None) -> str:
    """Log a failure of the server. Return the id of the log entry."""
    incident = secrets.token_hex(8)
    extra = {"incident": incident}
    name = redact_foreign(call.name)
    logger.error("%s %s%s [incident %s]", call.method, name, what, incident, exc_info=exc, extra=extra)
    return incident


def _task() -> asyncio.Task[Any] | None:
    """Return the current task, or None if a coroutine is closed outside its event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _conclude(call: Call, answer: bytes) -> None:
    """Finish a call before it's answered: end open questions, and copy the answer to the client's stream."""
    if call.question_ids:
        await call.services.questions.take_back(call.question_ids, partial(call.send_to_caller, late=True))
    if call.tee is not None:
        await call.tee(_stream_answer(call, answer))


def _stream_answer(call: Call, answer: bytes) -> bytes:
    """Return the answer for the stream of the call's client, always with an envelope."""
    if not call.bare:
        return answer
    failed = call.failure
    if failed is not None and failed.error is not None:
        return refusal_message(call.id, failed.error)
    return result_message(call.id, answer) if answer else b""


class _ToolResult(Struct, rename="camel"):
    is_error: bool = False


_decode_tool_result = decoder(_ToolResult)
_ERROR = b',"isError":true'
"""Last member of a failed tool's result, unless the result is custom or another server's."""


def _reports_error(result: bytes) -> bool:
    """Return whether another server's result is from a failed tool."""
    try:
        return _decode_tool_result(result).is_error
    except MALFORMED:
        return False


def _is_cancelled(call: Call) -> bool:
    """Return whether the caller canceled the call. It then gets no answer."""
    return call.cancelled and not (call.expired or call.halted)


def _wrap_envelope(call: Call, result: bytes) -> bytes:
    if call.cancelled and _is_cancelled(call):
        return b""
    return result if call.bare else result_message(call.id, result)


def _head(info: Json, revision: Revision, meta: Json | None) -> bytes:
    """Return the first members of a result. In the per-request era, these are the type and the server's name."""
    if not revision.result_type:
        return b"{" if meta is None else b'{"_meta":%b,' % encode(meta)
    merged = {SERVER_KEY: revisions.implementation(info, revision, whole=False), **(meta or {})}
    return b'{"resultType":"complete","_meta":%b,' % encode(merged)


def _handler(handlers: Mapping[str, Handler], registry: Registry, call: Call) -> Handler:
    """Return the handler for a method, from the server itself or from an extension.

    Raises:
        ProtocolError: METHOD_NOT_FOUND, for a method that the revision or this server doesn't have. In the per-request
            era, admission has checked this, unless the relayed server could have the method.
    """
    if (call.revision.handshake or registry.relayed is not None) and not registry.serves(call.method, call.revision):
        raise method_not_found(call.method)
    handler = handlers.get(call.method) or registry.extension_handler(call.method, call.revision)
    assert handler is not None  # noqa: S101  it was checked
    return handler
