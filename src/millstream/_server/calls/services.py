"""What one running server shares among its calls: settings, records, open questions, changes, keys, threads.

Made by the composition root for one event loop and handed down; nothing here decides anything about a call.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from secrets import token_bytes
from typing import Any

from millstream._config import Settings
from millstream._protocol.errors import INSUFFICIENT_SCOPE, LocalError, ProtocolError
from millstream._protocol.principal import Principal, Publisher
from millstream._protocol.seal import NONCE_BYTES, KeyRing
from millstream._server.calls.changes import ChangeFeed
from millstream._server.calls.keys import Secrets, load_secrets
from millstream._server.calls.message_observer import ObserveMessage, ignore_message
from millstream._server.calls.sessions import SessionRecords
from millstream._server.calls.threads import Threads
from millstream._server.peers import LEEWAY, Peers
from millstream._server.questions.pending_questions import PendingQuestions
from millstream._stores.base import Store


def principal_id(principal: Any) -> str:
    """Whose share of the server's capacity something takes; empty for an anonymous caller."""
    return principal.id if principal is not None else ""


def expiry_of(principal: Principal | None) -> float:
    """When the streams of a caller end, in seconds since 1970: with the credential that opened them."""
    return inf if principal is None else principal.until


def sign_in_required(needed: frozenset[str]) -> ProtocolError:
    """The refusal of a caller whose scopes do not cover something, where nobody can sign in."""
    wanted = " ".join(sorted(needed))
    text = f"This needs the scope {wanted}, and the server has no way to sign in."
    data = {"error": "insufficient_scope", "scope": wanted}
    return ProtocolError(INSUFFICIENT_SCOPE, text, data, status=403, head=b"cache-control: no-store\r\n")


async def _no_resource(uri: str, call: Any) -> Any:
    raise LocalError("Nothing reads resources here.")


class Services:
    """The shared parts of one running server."""

    __slots__ = (
        "_ring", "bodies", "changes", "clock", "endings", "forwarded_extensions", "held", "hub", "lacking", "leeway",
        "lifespan_of", "note", "overrides_of", "peers", "questions", "read_resource", "records", "secrets", "settings",
        "store", "streamed", "streaming", "tasks", "threads",
    )  # fmt: skip

    def __init__(self, settings: Settings, store: Store, changes: ChangeFeed, secrets: Secrets | None = None) -> None:
        """Nothing is heard of other workers before `open`.

        Args:
            settings: of the server.
            store: of this loop, which is open.
            changes: of this loop.
            secrets: those that the workers agreed on, where they share a store.
        """
        # Configuration
        self.settings: Settings = settings
        self.store: Store = store
        self.hub: Publisher | None = None
        self.note: ObserveMessage = ignore_message
        """Hears of every message that doesn't become a call."""
        self.tasks: Callable[[Any, Any, Callable[[Any, Any], Awaitable[bytes]]], Awaitable[bytes] | None] | None = None
        """``tasks(call, tool, run)`` makes a task of a call of a tool that allows it. Returns None where it stays a
        call; ``run(call, tool)`` runs it as one.
        """
        self.streamed: Callable[[Any], None] | None = None
        """Attaches the stream of a client to a call, where the hub is served."""
        self.clock: Callable[[], float] = store.time if store.shared else time.time
        """Unix time: that of the store, where other workers compare with it."""
        self.leeway: float = LEEWAY if store.shared else 0.0
        """Seconds for which what is sealed still opens after its time."""
        self.secrets: Secrets = secrets or load_secrets(settings.key)
        """Found at the start, because trouble with them must stop the start and not the first request."""
        self._ring: KeyRing | None = None
        self.lacking: Callable[[frozenset[str]], ProtocolError] = sign_in_required
        """The refusal of a caller whose scopes do not cover something."""
        # Shared state
        self.peers: Peers = Peers(store, self.secrets.values)
        """The other workers."""
        from millstream._http.budget import ByteBudget  # noqa: PLC0415  only a server that runs has one
        from millstream._server.calls.client_memory_quota import ClientMemoryQuota  # noqa: PLC0415  as above

        self.held: ClientMemoryQuota = ClientMemoryQuota()
        """What clients have accumulated that lasts as long as their connections."""
        self.records: SessionRecords = SessionRecords(
            store, settings.record_ttl, self.peers, self.clock, self.held.resize
        )
        self.questions: PendingQuestions = PendingQuestions(
            max_open=settings.max_questions,
            max_per_owner=settings.max_questions_per_principal,
            timeout=settings.ask_timeout,
            workers=store.workers,
        )
        self.bodies: ByteBudget = ByteBudget(settings.max_call_bytes, settings.max_body)
        """What large calls were asked with, for as long as they run."""
        self.changes: ChangeFeed = changes
        self.threads: Threads = Threads(settings.max_threads)
        self.forwarded_extensions: frozenset[str] = frozenset()
        """Extensions that an upstream has, and clients declare to it through this server."""
        self.streaming: dict[str, int] = {}
        """Caller, see `Call.owner` -> number of its open replies of custom methods."""
        self.endings: set[Callable[[], None]] = set()
        """Called when the server stops: open subscriptions end with their result."""
        self.lifespan_of: Callable[[Any], Any] = lambda home: None
        """What the user's lifespan yielded, as functions of a server see it that may be mounted."""

        self.read_resource: Callable[[str, Any], Awaitable[Any]] = _no_resource
        """Reads a resource as a part of a call."""

        self.overrides_of: Callable[[Any], Mapping[Callable[..., Any], Callable[..., Any]]] = lambda home: {}
        """The functions that tests put in the place of dependencies, as a function of a server finds them."""

    def open(self) -> None:
        """Begin to hear what other workers say."""
        self.peers.open()
        self.records.open()

    async def close(self) -> None:
        """Stop listening, and end the threads."""
        self.threads.close()
        await self.records.close()
        await self.peers.close()

    def use(self, secrets: Secrets) -> None:
        """Seal with other secrets from now on."""
        self.secrets = secrets
        self._ring = None
        self.peers.use(secrets.values)

    @property
    def ring(self) -> KeyRing:
        """The keys for session ids and sealed state, made when first needed."""
        ring = self._ring
        if ring is None:
            ring = self._ring = KeyRing(self.secrets.values)
        return ring

    @staticmethod
    def nonce() -> bytes:
        """Random bytes for one seal."""
        return token_bytes(NONCE_BYTES)
