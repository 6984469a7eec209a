"""Calls that run once: a repeat gets the outcome of the first call.

Such a call has a record in the store, in its owner's share. The record's name is a keyed digest of the address, the
tool, and the key or the arguments. Its content is sealed, and has a digest that includes the caller. It changes only by
compare-and-set:

| state | the call | a repeat |
|---|---|---|
| pending | waits for an answer | is told so |
| running | runs on a worker | waits for the outcome |
| done | has a result, or a tool's error | gets it with a note |
| unknown | may have taken effect | is told so |

A request that answers a question continues the record that the id of its rounds names, before any key is read. A call
that ends before its function has started leaves no record.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, cast

import msgspec
from msgspec import Struct, structs

from millstream._config import read_duration
from millstream._protocol.content import Text
from millstream._protocol.errors import (
    INVALID_PARAMS,
    Cancelled,
    Declined,
    ProtocolError,
    ToolError,
    ToolUnavailable,
)
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import encode
from millstream._protocol.principal import Share
from millstream._protocol.seal import InputRequired, Rounds
from millstream._server.calls.call import RUNNING as RUNNING_TASK
from millstream._server.calls.call import Call, TaskStart, params_of, value_of
from millstream._server.calls.context import call_binding
from millstream._server.calls.parked_calls import HolderUnreachable
from millstream._server.calls.questions import resolve_group
from millstream._server.calls.sealed_records import SealedRecords, show_time
from millstream._server.calls.services import Services
from millstream._stores.base import StoreFull, StoreUnavailable
from millstream._stores.workers import read_again
from millstream._tasks import Tasks, has_failed, retry_delay

KEY = "millstream/idempotencyKey"
"""The member of `_meta` with the caller's key, which is announced in the `_meta` of a tool that reads it."""
RAN_AT = "millstream/ranAt"
"""The member of a repeat's `_meta` with the time of the first call."""
PENDING, RUNNING, DONE, UNKNOWN = "pending", "running", "done", "unknown"
PATIENCE = 45.0
"""Maximum seconds that a repeat waits for a running call. Some clients give up after 60."""
MAX_KEY = 255
"""Maximum characters of a key."""
_MAX_KEPT = 256 * 1024
"""Maximum bytes of a result that is kept."""
_DAY = 86400.0
"""Seconds for which outcomes are kept, unless the tool says how long."""
_ATTEMPTS = 4
_MIN_PAUSE, _MAX_PAUSE = 0.05, 0.5
"""Minimum and maximum seconds before a repeat reads the record of a running call again."""
_OTHER = "The idempotency key was used with other arguments. Use a new key for another call."
_WAITING = "An identical call is waiting for an answer, so this one wasn't started. Answer its question first."
_BUSY = "An identical call is still running, so this one wasn't started. Call again later to get its result."
_LOST = (
    "An identical call began at {}, and its outcome is unknown. It may have taken effect, so it wasn't repeated. Check "
    "what it did. To run the call anyway, use another idempotency key, or call again after {}."
)
_FULL = "You have too many calls in progress. Try again later."
_NOTE = "[An identical call ran at {}. This is its result. It didn't run again.]"
_NOT_KEPT = "An identical call ran at {}. Its result couldn't be kept. It didn't run again."

logger = logging.getLogger("millstream")


class CallRecord(Struct, frozen=True, array_like=True):
    """The record of a call, as it's stored."""

    id: str
    """A random id of the call, which its rounds contain."""
    arguments: bytes
    """A digest of the caller, the tool, and the arguments as sent."""
    state: str = RUNNING
    started: float = 0.0
    expires: float = 0.0
    """When the store forgets it, in Unix time."""
    worker: str = ""
    """Worker that runs it."""
    begun: bool = False
    """Whether the function has started, so that a pending call may have had an effect."""
    round: int = 0
    """The round whose answers continue a pending call."""
    until: float = 0.0
    """When a pending call stops waiting, in Unix time."""
    result: bytes = b""
    """Members of the result in the newest revision, or empty if they couldn't be kept."""
    meta: bytes = b""


class IdempotentCall(Struct, eq=False):
    """What a call knows about its record, as `Call.claim`."""

    names: list[str]
    """Possible names of the record, one for each secret."""
    record: CallRecord
    seconds: float
    begun: bool
    """Whether the function has started. See `Call.begin`."""
    name: str = ""
    """The name in use."""
    continues: bool = False
    """Whether the request answers the questions of a pending call."""


class IdempotentCalls:
    """The calls of one worker that run once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._records = SealedRecords(services, "idempotency", CallRecord)
        self._here: dict[str, Call] = {}
        """Id of a record -> the call that runs here."""
        self._share = Share(services.settings.max_calls)
        self._tasks = Tasks()

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Stop the calls that still run. Their outcomes are unknown."""
        await self._tasks.close()

    def open(self, call: Call, option: bool | str, *, begun: bool) -> bool:
        """Return whether a call runs once, while its arguments are still available.

        Args:
            option: The tool's option, which isn't false.
            begun: Whether nothing comes before the function.

        Raises:
            ProtocolError: The key can't be used.
        """
        mark, is_retry, id = ("", "", "") if call.rounds is None else call.rounds.id.partition("-")
        marks, arguments = [mark], call_binding(call)
        if not is_retry:
            key = _read_key(call)
            if not key and option is True:
                return False
            what = encode([call.dispatcher.address.name, call.name, key, "" if key else arguments.hex()])
            marks = self._records.digests(what)
            id = secrets.token_hex(8)
            if not call.revision.handshake:
                call.get_rounds().id = f"{marks[0]}-{id}"
        seconds = read_duration(option) if isinstance(option, str) else _DAY
        call.claim = IdempotentCall(self._records.names(call.owner, marks), CallRecord(id, arguments), seconds, begun)
        return True

    async def run(self, call: Call, start: Callable[[], Coroutine[Any, Any, bytes]], wait: float) -> bytes:
        """Return the members of a call's result in the newest revision.

        Args:
            start: Runs the call, or continues it.
            wait: Maximum seconds that it waits for an answer, or 0 for the setting.

        Raises:
            ToolError: The call runs elsewhere, waits, or its outcome is unknown, or the key has other arguments.
        """
        if not self._share.take(call.owner):
            raise ToolUnavailable(_FULL)
        limit = wait if call.task == RUNNING_TASK else self._services.settings.max_call_seconds
        runs = False
        try:
            record = await self._claim(call, limit)
            if record is not None:
                return _answer(call, record)
            task = self._tasks.spawn(self._run(call, start, wait, limit, call.release))
            call.release, runs = None, True
        finally:
            if not runs:
                self._share.leave(call.owner)
        task.add_done_callback(has_failed)
        return await asyncio.shield(task)  # it also runs if the caller leaves

    # Records

    async def _claim(self, call: Call, limit: float) -> CallRecord | None:
        """Return the record to answer with, or None after claiming the call.

        Raises:
            ToolError: See `run`.
        """
        claim: IdempotentCall = call.claim
        deadline, attempts = time.monotonic() + PATIENCE, count()
        while True:
            claim.name, raw, record = await self._records.find(claim.names)
            now = self._services.clock()
            claim.continues = record is not None and _continues(call, record)
            is_over = record is not None and record.state == PENDING and now > record.until
            if record is None or claim.continues or (is_over and not record.begun):
                if await self._take(call, raw, record if claim.continues else None, now, limit):
                    return None
            elif (answer := await self._judge(claim, record, is_over=is_over)) is not None:
                # A running call may have ended since the record was read.
                if answer.state != RUNNING or raw == await self._services.store.kv.get(claim.name):
                    return answer
            elif time.monotonic() > deadline:
                raise ToolError(_BUSY)
            else:
                await asyncio.sleep(retry_delay(next(attempts), _MIN_PAUSE, _MAX_PAUSE))

    async def _take(self, call: Call, raw: bytes | None, earlier: CallRecord | None, now: float, limit: float) -> bool:
        """Return whether this call became the one that runs."""
        claim: IdempotentCall = call.claim
        id, expires = claim.record.id, now + limit + claim.seconds
        if id in self._here:  # another copy of an answer
            return False
        record = earlier or structs.replace(claim.record, started=now)
        record = structs.replace(record, state=RUNNING, worker=self._services.store.workers.me, expires=expires)
        self._here[id], taken = call, False
        try:
            taken = await self._records.write(claim.name, raw, record)
        finally:
            if not taken:
                del self._here[id]
        claim.record = record
        return taken

    async def _judge(self, claim: IdempotentCall, record: CallRecord, *, is_over: bool) -> CallRecord | None:
        """Return the record to answer a repeat with, or None if the call still runs.

        Raises:
            ToolError: The call waits for an answer, or had other arguments.
        """
        if record.arguments != claim.record.arguments:
            raise ToolError(_OTHER)
        here, workers = self._here.get(record.id), self._services.store.workers
        if (record.state == PENDING and not is_over) or (here is not None and here.open_questions):
            raise ToolError(_WAITING)
        if record.state != RUNNING:
            return record
        is_here = here is not None
        return None if is_here or await workers.find(record.worker) not in {"", workers.me} else record

    async def _run(
        self,
        call: Call,
        start: Callable[[], Coroutine[Any, Any, bytes]],
        wait: float,
        limit: float,
        release: Callable[[], object] | None,
    ) -> bytes:
        claim: IdempotentCall = call.claim
        ticket = None if call.rounds is None else call.rounds.ticket
        parked = None if ticket is None else self._services.parked.find(ticket)
        result, error = b"", None
        try:
            async with asyncio.timeout(limit):
                result = await start()
        except BaseException as exc:  # its outcome is stored
            error = exc
            if isinstance(exc, BaseExceptionGroup):
                error = resolve_group(cast("BaseExceptionGroup[BaseException]", exc))
        if parked is not None and parked.call.claim is not None:  # the function belongs to an earlier request
            claim.begun = parked.call.claim.begun
        still_waits = claim.continues and (parked is None or parked.timer is not None)
        try:
            await self._save(claim, self._find_outcome(call, result, error, wait, still_waits=still_waits))
        finally:
            del self._here[claim.record.id]
            self._share.leave(call.owner)
            if call.over and release is not None:
                release()
            call.release = release
        if error is not None:
            try:
                raise error
            finally:
                del error
        return result

    def _find_outcome(
        self, call: Call, result: bytes, error: BaseException | None, wait: float, *, still_waits: bool
    ) -> CallRecord | None:
        """Return the next record, or None if the call had no effect."""
        services = self._services
        claim: IdempotentCall = call.claim
        begun, now = claim.begun or claim.record.begun, services.clock()
        record: CallRecord = structs.replace(claim.record, begun=begun, expires=now + claim.seconds)
        if isinstance(error, InputRequired | TaskStart):
            rounds: Rounds = error.rounds or call.get_rounds()
            # Longer than its state can be opened.
            until = now + (wait or services.settings.input_timeout) + 2 * services.leeway + 1
            expires = until + claim.seconds
            return structs.replace(record, state=PENDING, round=rounds.rounds + 1, until=until, expires=expires)
        is_malformed = isinstance(error, ProtocolError) and error.code == INVALID_PARAMS
        if still_waits and (is_malformed or isinstance(error, HolderUnreachable)):
            return structs.replace(claim.record, state=PENDING, begun=begun or not is_malformed)
        if error is not None and not begun:
            return None
        if isinstance(error, ToolError | Declined | Cancelled | ProtocolError) and not isinstance(
            error, ToolUnavailable
        ):
            text = error.message if isinstance(error, ProtocolError) else str(error)
            result = encode({"content": [Text(text)], "isError": True})[1:-1]
        elif error is not None:
            return structs.replace(record, state=UNKNOWN)
        kept = result if len(result) <= _MAX_KEPT else b""
        return structs.replace(record, state=DONE, result=kept, meta=encode(call.meta) if kept and call.meta else b"")

    async def _save(self, claim: IdempotentCall, record: CallRecord | None) -> None:
        for attempt in count():
            try:
                raw = await read_again(self._services.store.kv, claim.name, attempt)
                current = self._records.open(claim.name, raw)
                is_other = current is not None and current.id != claim.record.id
                if is_other or await self._records.write(claim.name, raw, record):
                    return
            except (StoreFull, StoreUnavailable) as exc:
                is_full = isinstance(exc, StoreFull)
                if is_full and record is not None and record.state == PENDING:
                    raise  # nobody could answer its questions
                if is_full and record is not None and record.result:
                    record = structs.replace(record, result=b"", meta=b"")
                elif is_full or attempt >= _ATTEMPTS:
                    logger.warning("The outcome of a call that runs once couldn't be stored: %s", exc)
                    return


def _read_key(call: Call) -> str:
    """Return the caller's key, or an empty string.

    Raises:
        ProtocolError: It isn't text of a usable length.
    """
    given = members(value_of(params_of(call).meta))
    key = given.get(KEY, given.get("idempotencyKey", ""))
    if not isinstance(key, str) or len(key) > MAX_KEY or (not key and KEY in given):
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: the idempotency key must have 1 to {MAX_KEY} characters")
    return key


def _continues(call: Call, record: CallRecord) -> bool:
    """Return whether a request answers the questions of a pending call."""
    is_own = record.state == PENDING and call.claim.record.id == record.id
    return is_own and call.rounds is not None and call.rounds.rounds == record.round


def _answer(call: Call, record: CallRecord) -> bytes:
    """Return the members of a repeat's result.

    Raises:
        ToolError: The outcome is unknown, or couldn't be kept.
    """
    at = show_time(record.started)
    if record.state != DONE:
        raise ToolError(_LOST.format(at, show_time(record.expires)))
    if not record.result:  # clients refuse a result without the content that the output schema announces
        raise ToolError(_NOT_KEPT.format(at))
    found = msgspec.json.decode(b"{%b}" % record.result)
    note = Text(_NOTE.format(at))
    call.meta = {**(msgspec.json.decode(record.meta) if record.meta else {}), RAN_AT: at}
    return encode({**found, "content": [note, *found.get("content", ())]})[1:-1]
