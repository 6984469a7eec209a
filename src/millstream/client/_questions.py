"""What a server may ask its client: a person, a model, and which folders are open.

The same handlers answer requests of the handshake era and the rounds of the per-request era. They may be plain
functions or coroutines; a plain one runs in the event loop and must not block.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import msgspec
from msgspec import Raw, Struct

from millstream._protocol.content import Text
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, ProtocolError
from millstream._protocol.json_schema import members
from millstream._protocol.questions import CreateMessageRequestParams, ElicitRequestParams, Root, SampleResult
from millstream._protocol.revisions import Revision


class Question(ElicitRequestParams, kw_only=True):
    """What a server wants to know from the person: a form to fill in, or a URL to open.

    Example:
        ``def ask(question: Question) -> dict: return question.defaults``
    """

    @property
    def defaults(self) -> dict[str, Any]:
        """The values that the fields of the form have before the person touches them."""
        fields = members((self.requested_schema or {}).get("properties"))
        return {name: members(field)["default"] for name, field in fields.items() if "default" in members(field)}


Answered = Mapping[str, Any] | str | bool | None
"""Values of a form; True for a URL that the person opens; ``"decline"`` or False; ``"cancel"`` or None."""
Elicit = Callable[[Question], Answered | Awaitable[Answered]]
Sample = Callable[[CreateMessageRequestParams], str | SampleResult | Awaitable[str | SampleResult]]
Roots = Sequence[str | Path] | Callable[[], Awaitable[Sequence[str | Path | Root]]]
"""Folders and files, as paths or `file://` URIs, or what finds them when the server asks."""

_ACTIONS = frozenset({"accept", "decline", "cancel"})
_decode_form = msgspec.json.Decoder(Question).decode
_decode_sample = msgspec.json.Decoder(CreateMessageRequestParams).decode


class Asked(Struct, frozen=True):
    """One question as it came, for those who watch."""

    method: str
    params: Raw


class QuestionHandler(Protocol):
    """Answers the questions of one server: those of a `Client`, or what forwards them."""

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> dict[str, Any]:
        """Return the capabilities to declare in a revision; `more` are those of `Options.declare`."""
        ...

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        """Return the result of a question, a value that JSON can hold.

        Args:
            method: of the question.
            params: an encoded object.
            request_id: the request on whose stream the question came; 0 where the transport doesn't say.

        Raises:
            ProtocolError: the error to answer with.
        """
        ...


class Questions:
    """The handlers of one client."""

    __slots__ = ("_elicit", "_roots", "_sample", "noted")

    def __init__(self, elicit: Elicit | None, sample: Sample | None, roots: Roots | None) -> None:
        self._elicit = elicit
        self._sample = sample
        self._roots = roots
        self.noted: Callable[[Asked], object] | None = None
        """Hears each question before it is answered."""

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> dict[str, Any]:
        """What the client declares: that which it has a handler for, in the words of the revision."""
        declared: dict[str, Any] = {}
        if self._elicit is not None and "elicitation/create" in revision.asks:
            url = "url" in revision.elicitation_modes
            declared["elicitation"] = {"form": {}, "url": {}} if url else {}
        if self._sample is not None:
            declared["sampling"] = {}
        if self._roots is not None:
            declared["roots"] = {}
        return declared | dict(more)

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        """The result of a question.

        Raises:
            ProtocolError: there's no handler, the question can't be read, or the handler failed.
        """
        if self.noted is not None:
            self.noted(Asked(method, Raw(params or b"{}")))
        handler = self._METHODS.get(method)
        if handler is None:
            raise ProtocolError(METHOD_NOT_FOUND, f"Method not found: {method}")
        try:
            return await handler(self, params or b"{}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc

    async def _ping(self, params: bytes) -> Any:
        return {}

    async def _fill_in(self, params: bytes) -> Any:
        if self._elicit is None:
            raise ProtocolError(METHOD_NOT_FOUND, "This client asks nobody")
        given = await _ask(self._elicit, _decode_form(params))
        if isinstance(given, Mapping):
            return {"action": "accept", "content": dict(cast("Mapping[str, Any]", given))}
        if isinstance(given, str) and given in _ACTIONS:
            return {"action": given}
        return {"action": "cancel" if given is None else "accept" if given is True else "decline"}

    async def _complete(self, params: bytes) -> Any:
        if self._sample is None:
            raise ProtocolError(METHOD_NOT_FOUND, "This client has no model")
        given = await _ask(self._sample, _decode_sample(params))
        if isinstance(given, str):
            return SampleResult("assistant", Text(given), "unknown", "endTurn")
        return given

    async def _list_roots(self, params: bytes) -> Any:
        if self._roots is None:
            raise ProtocolError(METHOD_NOT_FOUND, "This client has no roots")
        finding = self._roots
        found = await _ask(lambda _: finding(), None) if callable(finding) else finding
        return {"roots": [root_of(each) for each in found]}

    _METHODS: ClassVar[Mapping[str, Callable[..., Awaitable[Any]]]] = {
        "ping": _ping,
        "elicitation/create": _fill_in,
        "sampling/createMessage": _complete,
        "roots/list": _list_roots,
    }


async def _ask(handler: Callable[[Any], Any], question: Any) -> Any:
    try:
        given = handler(question)
        return await given if inspect.isawaitable(given) else given
    except ProtocolError:
        raise
    except Exception as exc:
        raise ProtocolError(INTERNAL_ERROR, f"The client could not answer: {type(exc).__name__}") from exc


def root_of(place: str | Path | Root) -> Root:
    """A folder as a server sees it."""
    if isinstance(place, Root):
        return place
    if isinstance(place, str) and "://" in place:
        return Root(place)
    path = Path(place).absolute()
    return Root(path.as_uri(), path.name)
