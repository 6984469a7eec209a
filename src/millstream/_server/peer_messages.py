"""Messages between workers that share a store, sent by `peers`."""

from msgspec import Struct


class RecordUpdate(Struct, frozen=True, array_like=True, tag="record"):
    """A session has a new or changed record."""

    session: str


class AnswerMessage(Struct, frozen=True, array_like=True, tag="answer"):
    """A client answered a question of a call on the receiver."""

    session: str
    id: str
    result: bytes
    error: bytes


class CancelCall(Struct, frozen=True, array_like=True, tag="cancel"):
    """A client cancelled a call."""

    session: str
    id: bytes
    """JSON, because an integer can have more than 64 bits."""


class SessionEnd(Struct, frozen=True, array_like=True, tag="end"):
    """A session was deleted."""

    session: str


class StandaloneTakeover(Struct, frozen=True, array_like=True, tag="stream"):
    """A session has a new stand-alone stream at the sender. The last announced one wins."""

    session: str
    id: int


class ReplyTakeover(Struct, frozen=True, array_like=True, tag="follow"):
    """The sender reads the stream of a call from now on. The last announced reader wins."""

    log: str
    id: int


class PostedMessage(Struct, frozen=True, array_like=True, tag="post"):
    """A client sent a message for a connection on the receiver."""

    connection: str
    body: bytes


class ResourceUpdate(Struct, frozen=True, array_like=True, tag="update"):
    """A resource changed."""

    uri: str


class ExtensionBroadcast(Struct, frozen=True, array_like=True, tag="broadcast"):
    """A notification of an extension for the sessions of every worker."""

    source: str
    """The identifier of the extension."""
    to: str
    """The extension that a client must have declared. Empty for every session."""
    message: bytes


class ItemRemoval(Struct, frozen=True, array_like=True, tag="remove"):
    """A registered item was removed."""

    kind: str
    key: str


class ItemSwitch(Struct, frozen=True, array_like=True, tag="switch"):
    """A registered item was enabled or disabled."""

    kind: str
    key: str
    on: bool
    at: int = 0
    """A stamp (see `Peers.stamp`). The last change wins."""


class WorkerStart(Struct, frozen=True, array_like=True, tag="join"):
    """The sender has just started. It has only the items that its program registers."""


class LossNotice(Struct, frozen=True, array_like=True, tag="miss"):
    """The sender may have missed messages of others."""


class WorkerGreeting(Struct, frozen=True, array_like=True, tag="present"):
    """The sender was running before a worker that has just started."""


class StatsRequest(Struct, frozen=True, array_like=True, tag="ask"):
    """A request for the sender's dashboard."""

    number: int
    about: bytes


class StatsReply(Struct, frozen=True, array_like=True, tag="tell"):
    """The reply to a `StatsRequest`."""

    number: int
    answer: bytes


class WakeCall(Struct, frozen=True, array_like=True, tag="wake"):
    """A client's answers to the questions of a forwarded call, which waits on the receiver."""

    number: int
    """The sender's number for the call, used by `CallNews`."""
    id: str
    round: int
    binding: bytes
    responses: bytes
    """JSON: answers by the keys of their questions."""


class LeaveCall(Struct, frozen=True, array_like=True, tag="leave"):
    """The client that resumed a call cancelled it."""

    number: int


class CallNews(Struct, frozen=True, array_like=True, tag="news"):
    """A notification, questions, or the end of a resumed call."""

    number: int
    kind: str
    body: bytes
    more: bool = False
    """Whether the next message has the rest of the body."""


Message = (
    RecordUpdate | AnswerMessage | CancelCall | SessionEnd | StandaloneTakeover | ReplyTakeover | PostedMessage
    | ResourceUpdate | ExtensionBroadcast | ItemRemoval | ItemSwitch | WorkerStart | LossNotice | WorkerGreeting
    | StatsRequest | StatsReply | WakeCall | LeaveCall | CallNews
)  # fmt: skip
