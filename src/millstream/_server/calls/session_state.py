"""Values that functions keep in the store for a session, for a user, or for side effects that happen only once.

The values of a session are part of its record, and those of a user are one value of the store, so workers with one
store share them.

A side effect happens once even if its round arrives twice, because it's claimed in the store before it runs. A claim
contains its worker and is valid as long as that worker has its lease. If the worker dies, another copy of the round
claims the effect and runs it again, because its progress is unknown. If an effect must not happen twice even then, use
an idempotency key in the other system.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from millstream._override import override
from millstream._protocol.errors import OVERLOADED, LocalError, ProtocolError, ToolError
from millstream._protocol.jsonrpc import decoder, encode
from millstream._protocol.principal import Principal
from millstream._server.calls.services import Services
from millstream._server.calls.sessions import (
    TRIES,
    Session,
    SessionRecord,
    SessionRecords,
    convert_store_errors,
)
from millstream._stores.rates import share_for
from millstream._stores.workers import read_again

MAX_STATE = 64 * 1024
"""Maximum bytes of JSON that functions can store per session, and per user, including names."""
Values = Mapping[str, msgspec.Raw]
Edit = Callable[[Values], Values | None]
"""Returns the values after a change, or None if nothing changes. It may run again, with newer values."""


class StoredState(ABC):
    """Named values that outlast a call. A value must be JSON-serializable and is returned as decoded JSON.

    They're in the store, so workers with the same one see them. A session that's one connection keeps its own.
    """

    @abstractmethod
    def __bool__(self) -> bool: ...

    @abstractmethod
    async def _read(self) -> Values: ...

    @abstractmethod
    async def _change(self, edit: Edit) -> None: ...

    async def get(self, key: str, default: Any = None) -> Any:  # the JSON value that the program stored
        """Return the value of a key: ``await ctx.session_state.get("cart", [])``.

        Raises:
            ToolError: Nothing can be kept for this client. The other methods raise it as well.
        """
        raw = (await self._read()).get(key)
        return default if raw is None else msgspec.json.decode(raw)

    async def set(self, key: str, value: Any) -> None:
        """Store a value: ``await ctx.session_state.set("cart", ["Dune"])``.

        Raises:
            LocalError: All values together would exceed 64 KiB.
            ProtocolError: The store is full or doesn't respond.
            TypeError: The value isn't JSON-serializable.
        """
        await self.update(key, lambda _: value)

    async def delete(self, key: str) -> None:
        """Delete a value."""

        def edit(values: Values) -> Values | None:
            return {name: raw for name, raw in values.items() if name != key} if key in values else None

        await self._change(edit)

    async def update(
        self, key: str, function: Callable[[Any], Any], default: Any = None
    ) -> Any:  # the JSON value that the program stored
        """Replace a value with the result of a function and return it: ``await ctx.session_state.update("n", lambda n:
        n + 1, 0)``.

        Concurrent changes aren't lost: if another call was faster, the function runs again. Raises the errors of `set`.
        """
        value = default

        def edit(values: Values) -> Values:
            nonlocal value
            present = values.get(key)
            value = function(default if present is None else msgspec.json.decode(present))
            changed = {**values, key: msgspec.Raw(encode(value))}
            if sum(len(name.encode()) + len(bytes(raw)) for name, raw in changed.items()) > MAX_STATE:
                raise LocalError(
                    f"A session, or a user, stores at most {MAX_STATE} bytes. Store large values elsewhere, and only "
                    "their keys here."
                )
            return changed

        await self._change(edit)
        return value


class SessionState(StoredState):
    """Named values of one session.

    The values are deleted when the session ends, or after `session_ttl` without changes. A client without a session, as
    in 2026-07-28, has none: each method raises a ToolError, and ``if ctx.session_state`` is false.
    """

    def __init__(self, records: SessionRecords, session: Session | None) -> None:
        self._records = records
        self._known = session

    @override
    def __bool__(self) -> bool:
        return self._known is not None

    @property
    def _session(self) -> Session:
        if self._known is None:
            raise ToolError(
                "This client has no session, so no state can be kept between its calls. Return an id, and accept it as "
                "an argument in the next call."
            )
        return self._known

    @override
    async def _read(self) -> Values:
        return (await self._records.read(self._session)).state

    @override
    async def _change(self, edit: Edit) -> None:
        def replace_state(record: SessionRecord) -> SessionRecord | None:
            values = edit(record.state)
            return None if values is None else replace(record, state=dict(values))

        await self._records.change(self._session, replace_state)


class UserState(StoredState):
    """Named values of one user: of the principal who signed in, or of the only client over stdio.

    A user's sessions and programs share them, in every revision. They're deleted after `user_state_ttl` without
    changes. Over HTTP, a caller without sign-in has none: each method raises a ToolError, and ``if ctx.user_state`` is
    false.
    """

    def __init__(self, services: Services, principal: Principal | None, *, is_only_client: bool) -> None:
        self._services = services
        self._is_known = principal is not None or is_only_client
        owner = "" if principal is None else principal.id
        if principal is not None and not principal.issuer and principal.client == principal.subject:
            owner = f"#client {owner}"  # a key, and a person may have its name
        self._name = f"user-state:{share_for(owner)}.{sha256(owner.encode(errors='surrogatepass')).hexdigest()[:32]}"

    @override
    def __bool__(self) -> bool:
        return self._is_known

    @property
    def _key(self) -> str:
        if not self._is_known:
            raise ToolError("You aren't signed in, so nothing can be kept for you between calls.")
        return self._name

    @override
    async def _read(self) -> Values:
        with convert_store_errors():
            return _decode_values(await self._services.store.kv.get(self._key) or b"{}")

    @override
    async def _change(self, edit: Edit) -> None:
        kv, ttl = self._services.store.kv, self._services.settings.user_state_ttl
        with convert_store_errors():
            for attempt in range(TRIES):
                raw = await read_again(kv, self._key, attempt) if attempt else await kv.get(self._key)
                values = edit(_decode_values(raw or b"{}"))
                if values is None or await kv.compare_and_set(self._key, raw, encode(values) if values else None, ttl):
                    return
        raise ProtocolError(OVERLOADED, "There are too many concurrent changes. Try again.", status=503)


_decode_values = decoder(dict[str, msgspec.Raw])
_CLAIM_PREFIX = b"\x00"
"""The first byte of a claim, followed by the worker's name. No JSON value starts with it."""
_POLL = 0.1
"""Seconds after which a waiting call looks again for the value of an effect."""


async def once_stored(services: Services, name: str, run: Callable[[], Awaitable[bytes]]) -> bytes:
    """Return the value of an effect. The first caller runs it, and all others wait.

    Args:
        services: The server's services.
        name: The name that identifies the effect.
        run: Returns the value as JSON. If it raises, the effect isn't considered done and can be retried.

    Raises:
        ToolError: Another copy of the call claimed the effect and returned no value within the time limit of calls.
    """
    kv, ttl = services.store.kv, services.settings.input_timeout
    claim = _CLAIM_PREFIX + services.store.workers.me.encode()
    limit = asyncio.timeout(ttl)
    try:
        async with limit:
            seen: bytes | None = None
            while seen is None or seen[:1] == _CLAIM_PREFIX:
                if await kv.compare_and_set(name, seen, claim, ttl):
                    limit.reschedule(None)  # the tool's own time limit applies
                    return await _run(services, name, claim, run)
                seen = await _wait_for_value(services, name)
    except TimeoutError:
        if not limit.expired():
            raise
        raise ToolError("A copy of this call is still running. Try again later.") from None
    return seen


async def _run(services: Services, name: str, claim: bytes, run: Callable[[], Awaitable[bytes]]) -> bytes:
    kv, ttl = services.store.kv, services.settings.input_timeout
    try:
        done = await run()
        # If another worker holds the claim, this one was suspended for so long that it was treated as dead.
        await kv.compare_and_set(name, claim, done, ttl)
        return done
    except BaseException:
        await kv.compare_and_set(name, claim, None, 1.0)
        raise


async def _wait_for_value(services: Services, name: str) -> bytes | None:
    """Wait for the value of an effect. Return it, or a claim that can be taken over: a dead worker's, or None."""
    store = services.store
    while True:
        value = await store.kv.get(name)
        if value is None or value[:1] != _CLAIM_PREFIX:
            return value
        worker = value[1:].decode()
        if worker != store.workers.me and not await store.workers.alive(worker):
            return value
        await asyncio.sleep(_POLL)
