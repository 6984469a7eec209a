"""One upstream of a running gateway: what every kind has, whatever it speaks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from time import time
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, structs

from millstream._gateway.catalog.catalog import METHODS, Catalog, Description, Pins, StoredCatalog
from millstream._gateway.catalog.offer import OfferedItem
from millstream._gateway.errors import InUse, NoCredentials
from millstream._gateway.names import Names
from millstream._gateway.options.policy import UpstreamPolicy
from millstream._gateway.options.upstream import CHANGEABLE, UpstreamConfig
from millstream._gateway.processes.pool import ProcessPool, UpstreamProcesses
from millstream._gateway.rules.policy import Policy
from millstream._gateway.rules.results import StoredResults
from millstream._gateway.upstreams.breaker import Breaker
from millstream._gateway.upstreams.lists import ListKeeper
from millstream._http.client import ArrivingBytes, UnsendableRequest
from millstream._http.hosts import TrustedProxies
from millstream._parts import PartHost
from millstream._protocol.principal import Share
from millstream._server.calls.call import Call
from millstream._server.features.sources import Item
from millstream._text import pluralize
from millstream._troubles import LogOnce, local_time
from millstream.client import ClientError, ConnectFailed, TooMuchArriving
from millstream.client._recovery import UNREACHABLE
from millstream.protocol import BY_DATE, NEWEST, Json, Revision

if TYPE_CHECKING:
    from millstream._gateway.credentials.source import UpstreamCredentials

NAME = "millstream-gateway"
"""Name that the gateway sends to upstreams if it doesn't forward a client's name."""
_WEB_SCHEMES = "data", "http", "https", "mailto"
"""Schemes of links that clients open themselves."""


class Gateway(Struct, frozen=True):
    """Shared state of a running gateway's upstreams."""

    id: str
    """See `_names`."""
    name: str
    host: PartHost
    store_outlives: bool
    """Whether the store outlives the server."""
    pool: ProcessPool
    """Runs the processes of commands."""
    upstreams: "Mapping[str, Upstream]"
    """Name -> upstream that's in use."""
    sessions: Share
    """Counts the dedicated sessions of all upstreams."""
    proxies: TrustedProxies
    arriving: ArrivingBytes
    """Counts the bytes of unfinished replies from all upstreams."""
    on_change: Callable[["Upstream", Collection[str]], None]
    """Called after an upstream's `catalog` was replaced, with the kinds of lists that it said have changed."""

    @property
    def has_several(self) -> bool:
        """Whether there are several upstreams."""
        return len(self.upstreams) > 1


ItemClasses = Mapping[str, Callable[[Any, str, str, Description], Item]]
"""Kind -> class of its items, created from the upstream, the item's name or URI on this server and at the upstream, and
its description on this server without the name. Raises ValueError if clients would drop the item.
"""


class Upstream(ABC):
    """One upstream of a running gateway."""

    lists: ListKeeper[Any]
    """Keeps the lists."""
    credentials: "UpstreamCredentials | None" = None
    """Credentials of its connections; set before `open`."""
    processes: UpstreamProcesses | None = None
    """Processes of a command."""
    last_error: Json | None = None
    """Time and reason of the last call without a usable response."""
    tokens: int = 0
    """Tokens of the tools that are offered."""
    is_relayed = False
    """Whether the server forwards this upstream's messages instead of creating items from its lists."""

    def __init__(self, config: UpstreamConfig, gateway: Gateway, item_classes: ItemClasses) -> None:
        """Create the upstream; `open` connects to it.

        Args:
            config: Configuration of the upstream.
            item_classes: Classes of its items.
        """
        self.config: UpstreamConfig = config
        self.name: str = config.name
        self.gateway: Gateway = gateway
        self.item_classes: ItemClasses = item_classes
        self.address: Any = config.target
        """URL or target that credentials are sent to."""
        self.names: Names = config.names
        policy = config.policy or UpstreamPolicy()
        self.policy: Policy = Policy(policy, config.names)
        self.breaker: Breaker = Breaker(
            LogOnce(
                gateway.host.store.troubles,
                f"Calls to the upstream {config.name} fail",
                f"Calls to the upstream {config.name} work again.",
                remedy="Compare its credentials and timeout in the gateway's configuration with what it needs.",
            )
        )
        self.results: StoredResults = StoredResults(gateway.host.store.kv, config.names)
        """Results that were too large for their callers."""
        pins = Pins(config.name, policy, gateway.host.store.kv) if config.trust == "pin" else None
        self.lists = self._make_lists(
            StoredCatalog(gateway.host.store, gateway.name, config.name, config.address), pins
        )
        self.catalog: Catalog = self.lists.catalog
        """The lists that were offered last."""
        self.revision: Revision = NEWEST
        """Protocol revision of the upstream. Until the first connection, the newest one."""
        self.offered: dict[str, dict[str, OfferedItem]] = {kind: {} for kind in METHODS}
        """Kind -> name on this server -> what the registered item was created from."""
        self.stack: AsyncExitStack = AsyncExitStack()
        """Ends what it has registered."""

    @abstractmethod
    def _make_lists(self, stored: StoredCatalog, pins: Pins | None) -> ListKeeper[Any]:
        """Return the keeper of the lists.

        Args:
            stored: Copy of the lists in the store.
            pins: Pinned definitions, if any.
        """

    @abstractmethod
    async def open(self) -> None:
        """Start connecting, in the background."""

    async def close(self) -> None:
        """Close all connections."""
        await self.lists.tasks.close()
        await self.stack.aclose()
        self.breaker.trouble.forget()

    def can_become(self, config: UpstreamConfig) -> bool:
        """Return whether `become` can use a configuration: it's the same, except for rules that connections don't
        depend on, and timeouts, intervals, and bounds.
        """
        same = {each: getattr(self.config, each) for each in ("policy", *CHANGEABLE)}
        if structs.replace(config, **same) != self.config:
            return False
        old, new = self.config.policy or UpstreamPolicy(), config.policy or UpstreamPolicy()
        same_questions = Policy(new, config.names).questions == self.policy.questions
        return same_questions and (old.pins, old.new_items) == (new.pins, new.new_items)

    def become(self, config: UpstreamConfig) -> None:
        """Use other rules and limits, and keep all connections."""
        self.config = self.lists.config = config
        self.policy = Policy(config.policy or UpstreamPolicy(), config.names)

    @property
    def may_have_own(self) -> bool:
        """Whether client sessions can have dedicated sessions at this upstream."""
        return False

    @property
    def keeps_callers(self) -> bool:
        """Whether it keeps state for principals, in processes or sessions of their own."""
        return False

    @property
    def may_ask(self) -> bool:
        """Whether a per-request client may have to answer a question while a call runs."""
        return self.credentials is not None and self.credentials.personal

    @property
    def account(self) -> str:
        """Whose credentials it gets, for the operator, or empty without any."""
        if self.credentials is not None:
            return self.credentials.account
        return "the gateway's headers" if self.config.headers else ""

    @property
    def sharing(self) -> str:
        """Which callers share what, for the operator, or empty if there's nothing to say."""
        return ""

    @property
    def has_separate_processes(self) -> bool:
        """Whether callers don't share a process, so that the failure of one doesn't affect the others."""
        return False

    @property
    def waits_for_clients(self) -> bool:
        """Whether it's only started or asked when a client needs it."""
        return False

    @property
    def link_count(self) -> int:
        """Number of open connections."""
        return 0

    @property
    def relayed_sessions(self) -> Collection[str]:
        """Sessions of clients that the upstream itself tells about changes to its lists."""
        return ()

    def is_watchable(self) -> bool:
        """Return whether changes to its resources can be watched for all callers."""
        return False

    def end_links_of(self, owner: str) -> None:  # noqa: B027  an API has none
        """Close the connections of a user who has reconnected or disconnected."""

    def take_lists(self, found: Catalog, announced: Collection[str]) -> None:
        """Use new lists. Nothing else replaces the catalog.

        Args:
            found: The lists.
            announced: Kinds of lists that the upstream said have changed.
        """
        self.catalog, self.revision = found, BY_DATE.get(found.revision, NEWEST)
        self.gateway.on_change(self, announced)

    def link_uri(self, uri: str) -> str:
        """Translate a URI in an upstream's result for gateway clients.

        Web links that the upstream doesn't list are unchanged.
        """
        if uri.partition(":")[0].lower() in _WEB_SCHEMES and not self.lists.is_listed(uri):
            return uri
        return self.names.uri(uri) if "resources" in self.catalog.capabilities else uri

    def note_error(self, error: ClientError) -> None:
        """Show an error of a call to the operator, in `/gateway` and `doctor`."""
        self.last_error = {"at": time(), "text": str(error)}

    def record_failure(self, error: ClientError, call: Call, method: str, name: str) -> None:
        """Record a call without a usable response. It counts against its caller. If it may affect all callers, the
        gateway checks the upstream itself.
        """
        self.note_error(error)
        if isinstance(error, InUse | NoCredentials | TooMuchArriving | UnsendableRequest):
            return
        separate = self.has_separate_processes
        if isinstance(error, ConnectFailed) and not isinstance(error.__cause__, TimeoutError) and not separate:
            self.breaker.failure_count += 1
            self.lists.degrade(error)
        else:
            self.breaker.fail(call, method, name)
            responded = 0 < error.status < HTTPStatus.INTERNAL_SERVER_ERROR or not isinstance(error, UNREACHABLE)
            if responded or self.processes is not None:  # hung processes are replaced one by one
                return
        self.lists.tasks.spawn_once(self.lists.check)

    def describe(self) -> Json:
        """Return state and statistics for operators. `reason` may contain addresses.

        `items` is the number of items offered here, and `listed` the number that the upstream lists.
        """
        found = self.catalog
        state, reason = self.lists.report_state()
        if state == "ready" and any(found.items()) and not any(self.offered.values()):
            reason = reason or "None of the items that it lists are offered. Check the patterns of the policy."
        processes = self.processes
        if self.breaker.trouble.lasts:
            failing = self.breaker.trouble.trouble
            times = pluralize(failing.count, "call")
            reason = reason or f"{times} failed since {local_time(failing.since)}. The last one was {failing.reason}"
        return {
            "name": self.name,
            "prefix": self.names.prefix,
            "state": state,
            "reason": reason,
            "since": self.lists.since,
            "failed_reads": self.lists.failed_reads,
            "revision": found.revision,
            "transport": found.transport,
            "listed_at": found.taken_at,
            "changed_at": self.lists.changed_at,
            "changes": self.lists.changes.count,
            "last_change": self.lists.changes.last,
            "items": {kind: len(names) for kind, names in self.offered.items()},
            "listed": {kind: len(getattr(found, kind)) for kind in METHODS},
            "tokens": self.tokens,
            "quarantined": len(self.lists.quarantined),
            "accounts": self.config.connects,
            "account": self.account,
            "needs_account": self.lists.needs_account,
            "approvals": bool(self.config.asks_others),
            "separate": self.has_separate_processes,
            "sharing": self.sharing,
            "last_error": self.last_error,
            "links": self.link_count,
            "processes": None if processes is None else msgspec.to_builtins(processes.describe()),
            **self.breaker.describe(),
        }
