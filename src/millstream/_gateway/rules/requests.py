"""Requests for approval by other people: sealed records in the store, which their callers' later calls collect.

A record's name is a keyed digest of its caller, the address, the tool's definition and rules, and the arguments as the
upstream receives them, so another call or another rule is another request. An approver's answer only changes the
record. The call is sent when its caller repeats it, with the rights and rules of that moment:

| state | the call | the same call again |
|---|---|---|
| pending | waits for an answer | is told so |
| declined | isn't sent | is told so, until the request expires |
| approved | can be sent | is sent, and the record is running |
| running | runs on a worker | is told so, or that its outcome is unknown if the worker is gone |
| asking | has a question for its caller, who holds its state | needs another approval |

The record ends with the call. Pending requests are also in a list for approvers, because listing keys would scan the
store.
"""

import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count

import msgspec
from msgspec import Struct, structs

from millstream import Declined, Principal, ToolError
from millstream._config import read_duration
from millstream._gateway.options.policy import ApprovalPolicy
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.rules.results import has_companion
from millstream._protocol.principal import SHARED_KEY, Profile, get_profile
from millstream._protocol.seal import InputRequired
from millstream._server.calls.call import Call
from millstream._server.calls.sealed_records import DIGEST, SealedRecords, show_time
from millstream._server.calls.services import APPROVAL, Services
from millstream._server.dispatch import Dispatcher
from millstream.protocol import encode
from millstream.stores import StoreFull, StoreUnavailable, read_again

GET_APPROVED_RESULT = "get_approved_result"
"""The tool that sends an approved call with its stored arguments."""
ANSWER_APPROVAL = "answer_approval"
"""The tool that asks an approver about a request, at their client."""
CHANNEL = "approval.requested"
"""Channel of the hub with the id of each new request, which programs can declare as an event type."""
PENDING, DECLINED, APPROVED, RUNNING, ASKING = "pending", "declined", "approved", "running", "asking"
MAX_PENDING = 20
"""Maximum requests of one caller that wait for an answer."""
_MAX_KEPT = 16 * 1024
"""Maximum bytes of a call's arguments that are stored."""
_MAX_LISTED = 500
"""Maximum requests of all callers that wait for an answer."""
_LIST = "approvals:pending"
_UNNAMED = (
    "Another person has to approve this call, so this server has to know its caller by name. Sign in with an account "
    "or a key of your own."
)
_WAITS = (
    "This call waits for approval by {} until {}, so it hasn't been sent. Its request is {}. Once it's approved, "
    "{}call the tool again with the same arguments. That sends the call, and returns its result."
)
_TOO_MANY = (
    f"Too many calls wait for approval. {MAX_PENDING} of yours can wait at a time. Try again when some are answered."
)
_DECLINED = "An approver declined this call, so it wasn't sent. Don't repeat it before {}."
_BUSY = "This call was approved and is still running, so it wasn't started again. Call again later."
_LOST = (
    "This call was approved and sent, and its outcome is unknown, so it wasn't repeated. Check what it did. To ask for "
    "another approval, call again."
)
_USED = "The approval was already used, because it counts for one call. To ask for another one, call again."
_UNKNOWN = "There's no such request for you. It may have expired, or someone has answered it."
_OWN = "This request is your own, so another person has to answer it."
_OUTDATED = "The tool or its rules have changed, so this request can't be approved. Its caller has to call again."


class AnswerRefused(ToolError):
    """An answer that isn't saved."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status: int = status
        """Status for HTTP."""


class ApprovalRequest(Struct, frozen=True):
    """A call that another person approves, as it's stored."""

    id: str
    """The digest in its name, and a random part, so that an answer never counts for a later request about the same
    call."""
    tool: str
    set_name: str
    question: str
    """The tool and its arguments as text."""
    rules: tuple[ApprovalPolicy, ...]
    """The rules that ask for the approval. Each has to name the approver."""
    version: str
    """See `Tool.version`."""
    caller: Profile
    mark: str
    """A digest of the tool and the arguments for the upstream."""
    arguments: bytes
    """The arguments that the caller sent, or empty if they're too large to store."""
    expires: float
    state: str = PENDING
    approver: str = ""
    """Subject of the person who answered."""
    worker: str = ""
    """Worker that runs the call."""
    item: str = ""
    """The tool's name at the main address."""


Stored = tuple[str, bytes | None, ApprovalRequest]
"""The name of a request, its stored value, and the request."""
_decode_list = msgspec.msgpack.Decoder(dict[str, float]).decode


def is_approver(principal: Principal | None, rules: Sequence[ApprovalPolicy]) -> bool:
    """Return whether each of the rules names a person."""
    return principal is not None and _is_named(principal) and all(_names(each, principal) for each in rules)


def is_any_approver(principal: Principal | None, upstreams: Iterable[UpstreamConfig]) -> bool:
    """Return whether a rule for one of the upstreams names a person."""
    return any(is_approver(principal, [rule]) for each in upstreams for rule in each.asks_others)


def _is_named(principal: Principal) -> bool:
    return bool(principal.issuer) or principal.subject != SHARED_KEY


def _names(rule: ApprovalPolicy, principal: Principal) -> bool:
    is_machine = bool(principal.issuer) and principal.client == principal.subject
    by = rule.by or ()
    groups = [each.removeprefix("group:") for each in by if each.startswith("group:")]
    is_named = principal.in_group(groups) or (not is_machine and f"user:{principal.subject}" in by)
    return is_named and rule.issuer in ("", principal.issuer)


def find_version(request: ApprovalRequest, dispatcher: Dispatcher) -> str:
    """Return the current version of a request's tool, or empty if it doesn't exist."""
    tools = [each.registry.tools for each in dispatcher.everywhere if each.address.name == request.set_name]
    return next((str(each[request.tool].version) for each in tools if request.tool in each), "")


class ApprovalRequests:
    """The requests in a server's store."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._records = SealedRecords(services, "approvals", ApprovalRequest)

    # Callers

    async def _find(
        self, call: Call, rules: Sequence[ApprovalPolicy], version: str, mark: str, question: Callable[[], str]
    ) -> Stored:
        """Return the request of a call that has been approved."""
        services, principal = self._services, call.principal
        if principal is None or not _is_named(principal):
            raise ToolError(_UNNAMED)
        names, made = self._records.names(principal.id, self._digests(call, version, mark)), None
        while True:
            name, raw, request = await self._records.find(names)
            now = services.clock()
            if call.collects and (request is None or request.id != call.collects or request.state == ASKING):
                raise ToolError(_USED)
            if request is None or request.expires <= now or request.state == ASKING:
                expires = now + min(read_duration(each.within) for each in rules)
                arguments = encode(call.arguments)
                made = ApprovalRequest(
                    name.rpartition(".")[2] + secrets.token_hex(8), call.name, call.dispatcher.address.name, question(),
                    tuple(rules), version, get_profile(principal, ("name",)), mark,
                    arguments if len(arguments) <= _MAX_KEPT else b"", expires, item=call.item or call.name,
                )  # fmt: skip
                await self._records.write(name, raw, made)
                continue  # an identical call may have been faster
            if request.state == PENDING:
                await self._wait(call, name, raw, request, is_new=request == made)
                continue
            if request.state == DECLINED:
                raise Declined(_DECLINED.format(show_time(request.expires)))
            if request.state == RUNNING:
                if await services.store.workers.find(request.worker):
                    raise ToolError(_BUSY)
                await self._records.write(name, raw, None)
                raise ToolError(_LOST)
            return name, raw, request

    async def _wait(self, call: Call, name: str, raw: bytes | None, request: ApprovalRequest, *, is_new: bool) -> None:
        """Raise an error that says that a call waits, after listing its request, or return if that was answered."""
        if name not in await self._change_list(partial(_add, name, request.expires)):
            await self._records.write(name, raw, None)
            raise ToolError(_TOO_MANY)
        services, until = self._services, show_time(request.expires)
        if is_new:
            services.note(APPROVAL, call.transport, None, "requested", target=request.item, principal=call.principal)
            if services.hub is not None:
                await services.hub.publish(CHANNEL, {"id": request.id, "expires": until})
        if raw == await services.store.kv.get(name):
            approvers = " and ".join(" or ".join(each.by or ()) for each in request.rules)
            can_use = bool(request.arguments) and has_companion(call, GET_APPROVED_RESULT)
            how = f"call {GET_APPROVED_RESULT} with it, or " * can_use
            raise ToolError(_WAITS.format(approvers, until, request.id, how))
        await self._unlist(name, request)  # it was answered before it was listed again

    async def find_own(self, id: str, call: Call) -> ApprovalRequest | None:
        """Return a request of a call's caller at its address, or None, also if its tool has changed or no arguments are
        stored.
        """
        *_, request = await self._records.find(self._records.names(call.owner, [id[:DIGEST]]))
        if request is None or request.id != id or not request.arguments:
            return None
        tool = call.dispatcher.registry.find("tools", request.tool, call)
        is_same = tool is not None and id[:DIGEST] in self._digests(call, tool.version, request.mark)
        return request if is_same else None

    def _digests(self, call: Call, version: str, mark: str) -> list[str]:
        binding = b"" if call.principal is None else call.principal.binding
        return self._records.digests(encode([binding.hex(), call.dispatcher.address.name, version, mark]))

    @asynccontextmanager
    async def use(
        self, call: Call, rules: Sequence[ApprovalPolicy], version: str, mark: str, question: Callable[[], str]
    ) -> AsyncGenerator[None, None]:
        """Use the approval of a call for the block, which sends it, or create a request.

        Args:
            rules: The rules that ask for the approval.
            version: Version of the tool.
            mark: A digest of the tool and its arguments.
            question: Returns the text for approvers.

        Raises:
            ToolError, Declined: The call isn't approved, or runs already.
        """
        name, raw, approved = await self._find(call, rules, version, mark, question)
        services = self._services
        expires = services.clock() + services.settings.max_call_seconds
        request = structs.replace(approved, state=RUNNING, worker=services.store.workers.me, expires=expires)
        if not await self._records.write(name, raw, request):
            raise ToolError(_USED)
        call.approver, last = request.approver, None
        try:
            yield
        except InputRequired:
            answered_by = services.clock() + services.settings.input_timeout
            last = structs.replace(request, state=ASKING, expires=max(answered_by, approved.expires))
            raise
        finally:
            with suppress(StoreFull, StoreUnavailable):
                name, raw, current = await self._records.find([name])
                if current == request:
                    await self._records.write(name, raw, last)

    # Approvers

    async def pending(self, principal: Principal | None) -> tuple[list[Stored], int]:
        """Return the requests that a person can answer, the oldest first, and how many requests can't be opened."""
        kv, found, unreadable = self._services.store.kv, list[Stored](), 0
        names = [*self._decode(await kv.get(_LIST))]
        for name, raw in zip(names, await kv.get_many(names) if names else (), strict=True):
            request = self._records.open(name, raw)
            unreadable += request is None and raw is not None
            if request is not None and request.state == PENDING and is_approver(principal, request.rules):
                found.append((name, raw, request))
        return found, unreadable

    async def find(self, id: str, principal: Principal | None) -> Stored:
        """Return a request that a person can answer.

        Raises:
            AnswerRefused: There's none, or it's the person's own.
        """
        for name, raw, request in (await self.pending(principal))[0]:
            if request.id == id and principal is not None:
                if principal.subject == request.caller.subject:  # also with another issuer, or as a key
                    raise AnswerRefused(403, _OWN)
                return name, raw, request
        raise AnswerRefused(404, _UNKNOWN)

    async def count_pending(self) -> int:
        """Return how many requests wait for an answer."""
        return len(self._decode(await self._services.store.kv.get(_LIST)))

    async def answer(
        self, id: str, principal: Principal | None, dispatcher: Dispatcher, *, approve: bool, transport: str = "http"
    ) -> str:
        """Save a person's answer to a request, and return its new state.

        Args:
            id: The request.
            principal: The person.
            dispatcher: Knows the current tools.
            approve: Whether the call can be sent.
            transport: See `Call.transport`.

        Raises:
            AnswerRefused: The person can't answer the request, or approve it.
        """
        name, raw, request = await self.find(id, principal)
        if approve and find_version(request, dispatcher) != request.version:
            raise AnswerRefused(409, _OUTDATED)
        state = APPROVED if approve else DECLINED
        changed = structs.replace(request, state=state, approver="" if principal is None else principal.subject)
        if not await self._records.write(name, raw, changed):
            raise AnswerRefused(404, _UNKNOWN)
        self._services.note(APPROVAL, transport, None, state, target=request.item, principal=principal)
        await self._unlist(name, request)
        return state

    # The list

    def _decode(self, raw: bytes | None) -> dict[str, float]:
        now = self._services.clock()
        return {} if raw is None else {name: expires for name, expires in _decode_list(raw).items() if expires > now}

    async def _unlist(self, name: str, request: ApprovalRequest) -> None:
        expires = request.expires  # a later request has another time
        await self._change_list(
            lambda listed: {each: at for each, at in listed.items() if (each, at) != (name, expires)}
        )

    async def _change_list(self, change: Callable[[dict[str, float]], dict[str, float]]) -> dict[str, float]:
        """Change the list, and return it."""
        kv = self._services.store.kv
        for attempt in count():
            raw = await read_again(kv, _LIST, attempt)
            listed = self._decode(raw)
            changed = change(listed)
            now = self._services.clock()
            ttl = max([now + 1, *changed.values()]) - now
            value = msgspec.msgpack.encode(changed) if changed else None
            if changed == listed or await kv.compare_and_set(_LIST, raw, value, ttl):
                return changed
        return {}


def _add(name: str, expires: float, listed: dict[str, float]) -> dict[str, float]:
    """Return a list with a request in it, if there's room."""
    share, _, _ = name.partition(".")
    own = sum(each.startswith(share) for each in listed)
    has_room = name in listed or (own < MAX_PENDING and len(listed) < _MAX_LISTED)
    return {**listed, name: expires} if has_room else listed
