"""What functions keep for a session: small values in the session's record, the same whichever worker gets a call."""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from msgspec.structs import replace

from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.sessions import Session, SessionRecord, SessionRecords

MAX_STATE = 64 * 1024
"""Bytes of JSON that functions may keep for one session, names included."""


class SessionState:
    """Values of one session, each under a name. A value is what JSON can hold, and comes back as JSON gives it.

    They go when the session ends, or when nothing was changed for as long as `record_ttl` says.
    """

    __slots__ = ("_records", "_session")

    def __init__(self, records: SessionRecords, session: Session) -> None:
        self._records = records
        self._session = session

    async def get(self, key: str, default: Any = None) -> Any:
        """The value under a name: ``await ctx.session_state.get("cart", [])``."""
        raw = (await self._records.read(self._session)).state.get(key)
        return default if raw is None else msgspec.json.decode(raw)

    async def set(self, key: str, value: Any) -> None:
        """Keep a value: ``await ctx.session_state.set("cart", ["Dune"])``.

        Raises:
            LocalError: all values together would take more than 64 KiB.
            ProtocolError: the store is full or doesn't answer.
            TypeError: JSON can't hold it.
        """
        await self.update(key, lambda _: value)

    async def delete(self, key: str) -> None:
        """Forget a value."""

        def edit(record: SessionRecord) -> SessionRecord | None:
            kept = {name: raw for name, raw in record.state.items() if name != key}
            return replace(record, state=kept) if len(kept) < len(record.state) else None

        await self._records.change(self._session, edit)

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Make a value of the present one, and give it: ``await ctx.session_state.update("n", lambda n: n + 1, 0)``.

        No change by another call gets lost: the function runs again when another one was faster. Raises as `set` does.
        """
        value = default

        def edit(record: SessionRecord) -> SessionRecord:
            nonlocal value
            present = record.state.get(key)
            value = function(default if present is None else msgspec.json.decode(present))
            state = {**record.state, key: msgspec.Raw(encode(value))}
            if sum(len(name.encode()) + len(bytes(raw)) for name, raw in state.items()) > MAX_STATE:
                raise LocalError(
                    f"A session keeps at most {MAX_STATE} bytes. Keep large values elsewhere, and their names here."
                )
            return replace(record, state=state)

        await self._records.change(self._session, edit)
        return value


class SyncSessionState:
    """The same, blocking, for `def` functions."""

    __slots__ = ("_state", "_wait")

    def __init__(self, state: SessionState, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._state = state
        self._wait = wait

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a name: ``ctx.session_state.get("cart", [])``."""
        return self._wait(self._state.get(key, default))

    def set(self, key: str, value: Any) -> None:
        """Keep a value; raises as `SessionState.set` does."""
        self._wait(self._state.set(key, value))

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._wait(self._state.delete(key))

    def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Make a value of the present one, and give it. The function runs in the event loop: it must not block."""
        return self._wait(self._state.update(key, function, default))
