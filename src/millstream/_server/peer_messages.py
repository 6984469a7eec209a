"""What the workers that share a store say to each other; `peers` carries it."""

from msgspec import Struct


class RecordUpdate(Struct, frozen=True, array_like=True, tag="record"):
    """A session has a record now, or another one."""

    session: str


class AnswerMessage(Struct, frozen=True, array_like=True, tag="answer"):
    """A client answered a question that is open at the receiver."""

    session: str
    id: str
    result: bytes
    error: bytes


class CancelCall(Struct, frozen=True, array_like=True, tag="cancel"):
    """A client does not want the answer of a call any more."""

    session: str
    id: bytes
    """JSON: an integer may have more than 64 bits."""


class SessionEnd(Struct, frozen=True, array_like=True, tag="end"):
    """A session was deleted."""

    session: str


class StandaloneTakeover(Struct, frozen=True, array_like=True, tag="stream"):
    """A session has a new stand-alone stream at the sender. Of several, the one that's heard of last stays."""

    session: str
    id: int


class ReplyTakeover(Struct, frozen=True, array_like=True, tag="follow"):
    """The stream of a call is read at the sender from now on. Of several, the reader that's heard of last stays."""

    log: str
    id: int


class PostedMessage(Struct, frozen=True, array_like=True, tag="post"):
    """A client sent a message for a connection of the receiver."""

    connection: str
    body: bytes


class ResourceUpdate(Struct, frozen=True, array_like=True, tag="update"):
    """A resource changed."""

    uri: str


class ExtensionBroadcast(Struct, frozen=True, array_like=True, tag="broadcast"):
    """An extension notifies the sessions of every worker."""

    source: str
    """The identifier of the extension."""
    to: str
    """The extension that a client has to have declared; empty for every session."""
    message: bytes


class ItemRemoval(Struct, frozen=True, array_like=True, tag="remove"):
    """Something that was registered is no longer offered."""

    kind: str
    key: str


class ItemSwitch(Struct, frozen=True, array_like=True, tag="switch"):
    """Something that is registered is offered again, or not for now."""

    kind: str
    key: str
    on: bool
    at: int = 0
    """A stamp (see `Peers.stamp`): what was switched last stays."""


class WorkerStart(Struct, frozen=True, array_like=True, tag="join"):
    """The sender has just begun: it knows only what its program registers."""


class LossNotice(Struct, frozen=True, array_like=True, tag="miss"):
    """The sender may have missed messages of others."""


class WorkerGreeting(Struct, frozen=True, array_like=True, tag="present"):
    """The sender has heard of one that has just begun, and was there before."""


class StatsRequest(Struct, frozen=True, array_like=True, tag="ask"):
    """A question of the sender's dashboard."""

    number: int
    about: bytes


class StatsReply(Struct, frozen=True, array_like=True, tag="tell"):
    """The reply to a `StatsRequest`."""

    number: int
    answer: bytes


class WakeCall(Struct, frozen=True, array_like=True, tag="wake"):
    """A client answers the questions of a forwarded call that waits at the receiver."""

    number: int
    """By which the sender knows the news of the call."""
    id: str
    round: int
    bound: bytes
    responses: bytes
    """JSON: answers by the keys of their questions."""


class LeaveCall(Struct, frozen=True, array_like=True, tag="leave"):
    """The client that woke a call doesn't want its result any more."""

    number: int


class CallNews(Struct, frozen=True, array_like=True, tag="news"):
    """What a call that was woken says: a notification, questions, or its end."""

    number: int
    kind: str
    body: bytes
    more: bool = False
    """The next message has the rest of the body."""


Message = (
    RecordUpdate | AnswerMessage | CancelCall | SessionEnd | StandaloneTakeover | ReplyTakeover | PostedMessage
    | ResourceUpdate | ExtensionBroadcast | ItemRemoval | ItemSwitch | WorkerStart | LossNotice | WorkerGreeting
    | StatsRequest | StatsReply | WakeCall | LeaveCall | CallNews
)  # fmt: skip
