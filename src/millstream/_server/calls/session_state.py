"""Values that functions store for a session. They're part of the session's record, so all workers share them."""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from msgspec.structs import replace

from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.sessions import Session, SessionRecord, SessionRecords

MAX_STATE = 64 * 1024
"""Maximum bytes of JSON that functions can store per session, including names."""


class SessionState:
    """Named values of one session. A value must be JSON-serializable and is returned as decoded JSON.

    The values are deleted when the session ends, or after `session_ttl` without changes.
    """

    __slots__ = ("_records", "_session")

    def __init__(self, records: SessionRecords, session: Session) -> None:
        self._records = records
        self._session = session

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key: ``await ctx.session_state.get("cart", [])``."""
        raw = (await self._records.read(self._session)).state.get(key)
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

        def edit(record: SessionRecord) -> SessionRecord | None:
            kept = {name: raw for name, raw in record.state.items() if name != key}
            return replace(record, state=kept) if len(kept) < len(record.state) else None

        await self._records.change(self._session, edit)

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value with the result of a function, and return it: ``await ctx.session_state.update("n", lambda n:
        n + 1, 0)``.

        Concurrent changes aren't lost: if another call was faster, the function runs again. Raises the errors of `set`.
        """
        value = default

        def edit(record: SessionRecord) -> SessionRecord:
            nonlocal value
            present = record.state.get(key)
            value = function(default if present is None else msgspec.json.decode(present))
            state = {**record.state, key: msgspec.Raw(encode(value))}
            if sum(len(name.encode()) + len(bytes(raw)) for name, raw in state.items()) > MAX_STATE:
                raise LocalError(
                    f"A session stores at most {MAX_STATE} bytes. Store large values elsewhere, and only their "
                    "keys here."
                )
            return replace(record, state=state)

        await self._records.change(self._session, edit)
        return value


class SyncSessionState:
    """A blocking `SessionState`, for `def` functions."""

    __slots__ = ("_state", "_wait")

    def __init__(self, state: SessionState, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._state = state
        self._wait = wait

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key: ``ctx.session_state.get("cart", [])``."""
        return self._wait(self._state.get(key, default))

    def set(self, key: str, value: Any) -> None:
        """Store a value. Raises the errors of `SessionState.set`."""
        self._wait(self._state.set(key, value))

    def delete(self, key: str) -> None:
        """Delete a value."""
        self._wait(self._state.delete(key))

    def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value with the result of a function, and return it. The function runs in the event loop and must
        not block.
        """
        return self._wait(self._state.update(key, function, default))
