"""How a call reaches an upstream: pure functions from what is known to a value.

`plan_route` chooses the connection, before there is one. `choose_way` chooses what happens to messages on it, as soon
as the connection has a revision. Nothing else decides either, but for `isolation`, which `McpUpstream.key` adds.
"""

from enum import Enum
from functools import cache

from msgspec import Struct

from millstream.protocol import Revision


class Way(Enum):
    """What happens to the messages of a call, and to the questions that the upstream asks."""

    VERBATIM = "verbatim"
    """Everything is passed on unchanged, because a relay's client speaks the upstream's revision."""
    STREAM = "stream"
    """The upstream has sessions: questions are requests on the stream of its call. A client without one answers with
    its next request, while the call waits.
    """
    PASS = "pass"  # noqa: S105  not a password
    """Neither side has: the client answers questions in a result with its next request."""
    ROUNDS = "rounds"
    """From a session to an upstream without: questions in a result become requests to the client."""


SESSION_METHODS = frozenset({"resources/subscribe", "resources/unsubscribe", "logging/setLevel"})
"""Methods whose effect lasts as long as the session."""


class UpstreamFacts(Struct, frozen=True, kw_only=True):
    """What is known about an upstream, from which its routes follow."""

    revision: Revision
    """The newest revision that the upstream and the gateway have in common."""
    is_relayed: bool = False
    gives_sessions: bool = True
    """Whether the upstream creates sessions, as far as known."""
    answers_handshake: bool = False
    """Whether it serves the handshake era, too, although it doesn't create sessions."""
    has_processes: bool = False
    serves_several: bool = False
    """Whether one process, or the only session that a URL allows, serves several clients."""
    isolation: str | None = "shared"
    """See `UpstreamConfig.isolation`."""
    is_remote: bool = False
    """Whether it's at a URL."""
    keeps_state: bool = True
    """See `UpstreamConfig.keeps_state`."""
    keeps_sessions: bool = False
    """Whether a connection is a session at the upstream, so that callers on one connection share its state. True as
    long as it isn't known.
    """
    has_principals: bool = False
    """Whether callers sign in."""
    separates_principals: bool = False
    """Whether each principal needs a connection for other reasons."""
    has_credentials: bool = False
    in_sessions: bool = False
    """Whether a shared process uses the handshake although it also supports the newer era."""
    names_calls: bool = True
    """Whether messages name their call, and no call becomes a task."""

    @property
    def is_by_principal(self) -> bool:
        """Whether each principal needs a process."""
        if self.isolation is None:
            return self.serves_several and self.has_principals and self.keeps_sessions
        return self.serves_several and self.isolation == "per_principal"


class CallRoute(Struct, frozen=True):
    """The connection for the calls of some clients."""

    own: bool = False
    """Whether it's a connection that serves only one client session, with its revision."""
    once: bool = False
    """Whether it's an upstream session that serves only one call, because the caller is unknown. A client that can have
    a session here, too, should.
    """
    by_principal: bool = True
    by_session: bool = True
    by_abilities: bool = True
    takes_credentials: bool = True
    handshake: bool = False
    is_plain: bool = False
    """Whether a call can be one request and one result, on an open connection."""
    is_verbatim: bool = False
    """Whether the way can be `Way.VERBATIM`. A session of the client's own has its revision only once it's open."""
    remembers: bool = False
    """Whether the client's own connection is a session of the upstream."""

    def passes(self, method: str) -> bool:
        """Return whether a relay passes on the requests of a method. What a session remembers stays in the client's
        session here, unless the upstream session is its own: other callers share it.
        """
        return self.is_verbatim and (self.remembers or method not in SESSION_METHODS)


def plan_route(
    client: Revision, facts: UpstreamFacts, *, has_session: bool, is_known: bool = True, needs_newer: bool = False
) -> CallRoute:
    """Return the connection for a client's calls. People who can be told apart share no state, unless the operator
    wants it.

    Args:
        client: The client's revision.
        facts: What is known about the upstream.
        has_session: Whether the client has a session here.
        is_known: Whether the caller is a principal, or the only one.
        needs_newer: Whether the call needs the newer era: to become a task, or to ask without a session.
    """
    opens = facts.gives_sessions or facts.answers_handshake
    own = client.handshake and has_session and opens and not facts.serves_several
    same = facts.is_relayed and client is facts.revision
    if facts.serves_several:
        return CallRoute(
            by_principal=facts.is_by_principal,
            by_session=False,
            by_abilities=False,
            takes_credentials=facts.is_remote,
            handshake=facts.in_sessions,
            is_verbatim=same,
        )
    by_principal = facts.separates_principals
    plain = not (facts.has_processes or facts.has_credentials or by_principal) and facts.names_calls
    if own and not needs_newer:
        return CallRoute(
            own,
            remembers=facts.gives_sessions,
            by_abilities=False,
            is_plain=plain and facts.is_relayed and facts.gives_sessions,  # else, a call may have to change its era
            is_verbatim=facts.is_relayed,
        )
    if facts.has_processes:
        return CallRoute(takes_credentials=False, is_verbatim=same)
    if facts.is_remote and facts.keeps_sessions and facts.isolation != "shared" and not (is_known or has_session):
        return CallRoute(once=True, is_verbatim=same)
    if facts.revision.handshake:
        apart = facts.keeps_state
        return CallRoute(by_principal=apart or by_principal, by_session=apart, is_verbatim=same)
    plain = plain and not client.handshake and (same or not facts.is_relayed)
    return CallRoute(by_principal=by_principal, by_session=False, by_abilities=False, is_plain=plain, is_verbatim=same)


@cache
def choose_way(client: Revision, source: Revision, *, is_relayed: bool) -> Way:
    """Return what happens to the messages of a call.

    Args:
        client: The client's revision.
        source: The revision of the connection to the upstream.
        is_relayed: Whether the server relays the upstream.
    """
    if is_relayed and client is source:
        return Way.VERBATIM
    if source.handshake:
        return Way.STREAM
    return Way.ROUNDS if client.handshake else Way.PASS
