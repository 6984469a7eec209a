"""The gate that checks rate limits and quotas, from the settings and from single tools, before calls.

A caller is a principal, or an address for anonymous callers. The program that started this one over stdio has only the
limits of the tools. If any limit rejects a call, none is charged. With a shared store, limits apply to all of its
workers together. Without limits, there is no gate.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from math import ceil
from typing import Any, NamedTuple

from millstream._http.message import HttpRequest, peer_network
from millstream._limits import (
    CalendarQuota,
    Limiter,
    Rate,
    SharedLimiter,
    concurrency_limits,
    hash_key,
    limit_name,
    rate_lines,
)
from millstream._override import override
from millstream._parts import PartHost
from millstream._protocol.admission import target_name
from millstream._protocol.errors import RATE_LIMITED, ProtocolError
from millstream._protocol.principal import Principal, Share
from millstream._server.calls.call import Call
from millstream._server.calls.services import RequestLimits
from millstream._server.control import Gate
from millstream._server.features.tools import Tool
from millstream._stores.rates import SLOT_WAIT, Charge, ChargeResult, ConcurrencySlot, RateCharge
from millstream._text import pluralize

_MAX_ASKING = 64
"""Maximum number of messages that wait for the store to charge them. Further ones aren't charged until it responds."""


class _Pace(NamedTuple):
    limiter: Any
    """A `Limiter`, or a `SharedLimiter` with a shared store."""
    key: str
    price: float


class Throttle(RequestLimits):
    """The limits of one running server."""

    def __init__(self, host: PartHost) -> None:
        settings, store = host.settings, host.store
        self._pool = host.pool
        self._run = host.run
        self._time = store.time
        self._limiter: Callable[[str, Rate], Limiter | SharedLimiter] = SharedLimiter if store.shared else Limiter
        self._requests = self._of("requests", settings.limit_requests)
        self._calls = self._of("calls", settings.limit_calls)
        self._address = self._of("address", settings.limit_address)
        self._quota = CalendarQuota(settings.limit_quota) if settings.limit_quota else None
        self._concurrency = settings.limit_concurrency
        self.refused = Counter[str]()
        """Policy -> number of rejected calls and requests."""
        self._named: dict[tuple[str, str], Limiter | SharedLimiter] = {}
        """(tool or ``set NAME``, rate) -> the limiter of its calls."""
        self._asking = 0
        """Number of charges from `charge` that are waiting for the store."""
        self._held = Share()
        """Slots held by this worker's calls, by name of the limit."""
        self._holders = count()

    def gate(self) -> Gate:
        """Return the gate that charges a call to its caller: immediately, or when the result is awaited if the store
        decides.

        It raises `ProtocolError`, RATE_LIMITED, HTTP 429, with the time to wait.
        """
        rates = [each for each in (self._requests, self._calls, self._address) if each is not None]
        only = rates[0] if len(rates) == 1 else None
        if not isinstance(only, Limiter) or only is self._address or self._quota or self._concurrency:
            return self._check
        return self._quick(only)

    def _quick(self, only: Limiter) -> Gate:
        """Return a gate for the most common case, one rate per caller in this worker: a call within the limit costs one
        addition, and no Python call.
        """
        clock, whole_at, each, room, check = only.clock, only.whole_at, only.each, float(only.rate.seconds), self._check

        def quick(call: Call) -> Awaitable[None] | None:
            tool, principal, origin = call.tool, call.principal, call.origin
            if tool is not None and not tool.limited and not call.dispatcher.address.limit:
                # `Call.owner`, inlined
                owner = principal.id if principal is not None else "" if origin is None else peer_network(origin.peer)
                at = whole_at.get(owner)
                if at is not None:
                    now = clock()
                    at = (at if at > now else now) + each * tool.cost  # noqa: FURB136  `max` would be a call
                    if at <= now + room:
                        whole_at[owner] = at
                        return None
            return check(call)  # a new caller, a caller over its limit, or another kind of call

        return quick

    @property
    def limits_requests(self) -> bool:
        """Whether `limit_requests` or `limit_address` is set."""
        return self._requests is not None or self._address is not None

    @override
    async def admit(self, request: HttpRequest) -> None:
        """See `RequestLimits.admit`."""
        paces = self._paces(request.owner, peer_network(request.peer))
        self._refuse_early(paces)
        if not _spend(paces):
            await self._ask(None, paces, [])

    @override
    def charge(self, principal: Principal | None, peer: str) -> ProtocolError | None:
        """See `RequestLimits.charge`. A shared store decides later, and its decision applies to the next message."""
        network = peer_network(peer)
        paces = self._paces(network if principal is None else principal.id, network)
        try:
            self._refuse_early(paces)
        except ProtocolError as exc:
            return exc
        if not _spend(paces) and self._asking < _MAX_ASKING:
            self._asking += 1
            self._run(self._ask_later(paces))
        return None

    async def _ask_later(self, paces: Sequence[_Pace]) -> None:
        try:
            with suppress(ProtocolError):  # `learn` has kept it
                await self._ask(None, paces, [])
        finally:
            self._asking -= 1

    def _check(self, call: Call) -> Awaitable[None] | None:
        """Charge a call to all limits."""
        owner = call.owner
        peer = "" if call.origin is None else peer_network(call.origin.peer)
        is_tool_call = call.method == "tools/call"
        tool: Tool | None = call.tool
        if is_tool_call and tool is None:
            registry = call.dispatcher.registry
            tool = registry.find("tools", call.name or target_name(call.method, call.params), call)
        paces = self._paces(owner, peer, tool, is_tool_call=is_tool_call)
        address = call.dispatcher.address
        if is_tool_call and owner and address.limit:
            name = f"set {address.name}"
            paces.append(_Pace(self._find(name, name, address.limit), owner, 1.0))
        self._refuse_early(paces)
        charges = self._more(tool, owner) if is_tool_call else []
        spent = _spend(paces)
        return self._ask(call, paces, charges, spent=spent) if charges or not spent else None

    def _refuse_early(self, paces: Sequence[_Pace]) -> None:
        for limiter, key, price in paces:
            self._refuse_rate(limiter, key, limiter.wait(key, price))

    def _refuse_rate(self, limiter: Limiter | SharedLimiter, key: str, wait: float) -> None:
        if wait > 0:
            raise self._refusal(limiter.name, limiter.rate, limiter.count_remaining(key), wait)

    def _paces(self, owner: str, peer: str, tool: Tool | None = None, *, is_tool_call: bool = False) -> list[_Pace]:
        """Return the rates that apply to a request."""
        cost = 1.0 if tool is None else tool.cost
        common = (self._calls if is_tool_call else None, owner), (self._requests, owner), (self._address, peer)
        paces = [_Pace(limiter, key, cost) for limiter, key in common if limiter is not None and key]
        if tool is not None and tool.limit:
            name = tool.main_name or tool.name
            return [_Pace(self._find(name, limit_name("tool", name), tool.limit), owner, 1.0), *paces]
        return paces

    def _more(self, tool: Tool | None, owner: str) -> list[tuple[str, Charge]]:
        """Return the names and charges of a tool call's limits that the store tracks."""
        charges: list[tuple[str, Charge]] = []
        if self._quota is not None and owner:
            cost = 1.0 if tool is None else tool.cost
            charges.append((self._quota.name, self._quota.at(owner, cost, self._time())))
        named, of_tool = ("", 0) if tool is None else (tool.main_name or tool.name, tool.concurrency)
        for name, key, most in concurrency_limits(owner, self._concurrency, named, of_tool):
            charges.append((name, ConcurrencySlot(hash_key(name, key), most, f"{next(self._holders):x}")))
        return charges

    async def _ask(
        self, call: Call | None, paces: Sequence[_Pace], charges: Sequence[tuple[str, Charge]], *, spent: bool = False
    ) -> None:
        """Take from the limits in the store. If `spent` is true, this worker has already taken from the rates."""
        shared = () if spent else paces
        asked = [limiter.pace(key, price) for limiter, key, price in shared]
        decision = await self._pool.take([*asked, *(charge for _, charge in charges)])
        try:
            if decision is None:
                # Enforce this worker's share while the store is unavailable. Quotas need the store.
                for policy, charge in charges:
                    if isinstance(charge, ConcurrencySlot) and self._held.count(charge.key) >= max(
                        1, charge.count // self._pool.workers
                    ):
                        raise self._full(policy, charge)
                alone = [_Pace(limiter.alone(), key, price) for limiter, key, price in shared]
                self._refuse_early(alone)
                _spend(alone)
            else:
                self._judge(decision, shared, asked, charges)
        except ProtocolError:
            if spent:
                _put_back(paces)
            raise
        slots = [charge for _, charge in charges if isinstance(charge, ConcurrencySlot)]
        if slots and call is not None:
            for slot in slots:
                self._held.take(slot.key)

            def release() -> None:
                for slot in slots:
                    self._held.leave(slot.key)
                self._pool.leave(slots)

            call.release = release

    def _judge(
        self,
        decision: list[ChargeResult],
        paces: Sequence[_Pace],
        asked: Sequence[RateCharge],
        charges: Sequence[tuple[str, Charge]],
    ) -> None:
        """Record the store's decision and raise an error if it rejected the call."""
        said = list(zip(paces, asked, decision, strict=False))  # other limits follow
        for (limiter, key, _), pace, taken in said:
            limiter.workers = self._pool.workers
            limiter.learn(key, pace, taken)
        for (limiter, key, _), _, taken in said:
            self._refuse_rate(limiter, key, taken.wait)
        for (policy, charge), taken in zip(charges, decision[len(asked) :], strict=True):
            if taken.wait > 0:
                if isinstance(charge, ConcurrencySlot):
                    raise self._full(policy, charge)
                assert self._quota is not None  # noqa: S101  it made the charge
                raise self._refusal(policy, self._quota.rate, int(taken.remaining), taken.wait)

    def _of(self, name: str, rate: str) -> Limiter | SharedLimiter | None:
        return self._limiter(name, Rate.of(rate)) if rate else None

    def _find(self, key: str, name: str, rate: str) -> Limiter | SharedLimiter:
        if (key, rate) not in self._named:
            self._named[key, rate] = self._limiter(name, Rate.of(rate))
        return self._named[key, rate]

    def _refusal(self, policy: str, rate: Rate, left: int, wait: float) -> ProtocolError:
        """Return the refusal of a caller over its rate limit."""
        text = f"Too many requests. Try again in {pluralize(max(1, ceil(wait)), 'second')}"
        head = rate_lines(policy, rate, left, wait)
        return self._refuse(policy, text, f"{rate.count} per {rate.seconds} s", wait, head)

    def _full(self, policy: str, slot: ConcurrencySlot) -> ProtocolError:
        """Return the refusal of a caller with too many concurrent calls."""
        text, head = (
            "Too many concurrent calls. Try again when one has finished",
            b"retry-after: %d\r\n" % ceil(SLOT_WAIT),
        )
        return self._refuse(policy, text, f"{slot.count} at a time", SLOT_WAIT, head)

    def _refuse(self, policy: str, text: str, limit: str, wait: float, head: bytes) -> ProtocolError:
        self.refused[policy] += 1
        data = {"code": "rate_limited", "retryAfterMs": ceil(wait * 1000), "policy": policy, "limit": limit}
        return ProtocolError(RATE_LIMITED, text, data, status=429, head=head)


def _spend(paces: Sequence[_Pace]) -> bool:
    """Charge the limits that this worker decides alone or has prepaid. Return whether those are all."""
    for number, (limiter, key, price) in enumerate(paces):
        if not limiter.spend(key, price):
            _put_back(paces[:number])
            return False
    return True


def _put_back(paces: Sequence[_Pace]) -> None:
    for limiter, key, price in paces:
        limiter.put_back(key, price)
