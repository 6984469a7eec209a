"""Questions that a server asks its client: for the user, for a language model, and about roots.

The same handlers serve requests of the handshake era and rounds of the per-request era. They can be plain functions or
coroutines. Plain functions run in the event loop and must not block.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from msgspec import Raw, Struct

from millstream._protocol.content import Text
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, ProtocolError
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, Json
from millstream._protocol.notifications import (
    CreateMessageRequestParams,
    ElicitRequestParams,
    InputRequest,
    Root,
    SampleResult,
)
from millstream._protocol.revisions import Revision
from millstream._text import add_article
from millstream.client._errors import InvalidResponse, client_logger


class Question(ElicitRequestParams, kw_only=True):
    """A question for the user: a form to fill in, or a URL to open.

    Example:
        ``def ask(question: Question) -> dict: return question.defaults``
    """

    @property
    def defaults(self) -> Json:
        """Default values of the form's fields."""
        fields = members((self.requested_schema or {}).get("properties"))
        return {name: members(field)["default"] for name, field in fields.items() if "default" in members(field)}


ElicitAnswer = Mapping[str, Any] | str | bool | None
"""Form values, or True after the user opened the URL, or to leave the form as it is; ``"decline"`` or False;
``"cancel"`` or None.
"""
Elicit = Callable[[Question], ElicitAnswer | Awaitable[ElicitAnswer]]
Sample = Callable[[CreateMessageRequestParams], str | SampleResult | Awaitable[str | SampleResult]]
Roots = Sequence[str | Path] | Callable[[], Awaitable[Sequence[str | Path | Root]]]
"""Folders and files, as paths or `file://` URIs, or a function that returns them when the server asks."""

_logger = client_logger(__name__)
_ACTIONS = frozenset({"accept", "decline", "cancel"})
_decode_form = foreign_decoder(Question)
_decode_sample = foreign_decoder(CreateMessageRequestParams)


class QuestionHandler(Protocol):
    """Answers the questions of one server: ``Conversation(url, handler, options, …)``."""

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> Json:
        """Return the capabilities to declare.

        Args:
            revision: The revision.
            more: `Options.extra_capabilities`.
        """
        ...

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:  # becomes JSON
        """Answer a question. Return the result as a JSON-compatible value.

        Args:
            method: Method of the question.
            params: Encoded parameters.
            request_id: The request on whose stream the question arrived, or 0 if the transport doesn't specify it.

        Raises:
            ProtocolError: The error response.
        """
        ...


class Questions(Struct, eq=False):
    """The question handlers of one client."""

    _elicit: Elicit | None
    _sample: Sample | None
    _roots: Roots | None
    custom: dict[str, Callable[[bytes], Awaitable[Any]]] = {}
    """Extension request -> its handler."""
    observer: Callable[[InputRequest], object] | None = None
    """Observer that receives each question before it's answered."""

    def __post_init__(self) -> None:
        """Check the handlers.

        Raises:
            TypeError: `elicit` doesn't take a question.
        """
        if self._elicit is not None:
            try:
                inspect.signature(self._elicit).bind(None)
            except ValueError:
                pass  # a callable without a signature
            except TypeError as exc:
                raise TypeError(
                    "elicit takes one argument, the question: elicit=lambda question: …. Its text is question.message, "
                    "and the schema of its form is question.requested_schema."
                ) from exc

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> Json:
        """Return the capabilities to declare in a revision, one for each handler."""
        declared: Json = {}
        if self._elicit is not None and "elicitation/create" in revision.asks:
            url = "url" in revision.elicitation_modes
            declared["elicitation"] = {"form": {}, "url": {}} if url else {}
        if self._sample is not None:
            declared["sampling"] = {}
        if self._roots is not None:
            declared["roots"] = {}
        return declared | dict(more)

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        """Answer a question.

        Raises:
            ProtocolError: There's no handler, the question is malformed, or the handler failed.
        """
        if self.observer is not None:
            self.observer(InputRequest(method, Raw(params or b"{}")))
        custom = self.custom.get(method)
        if custom is not None:
            return await _ask(custom, params)
        if method == "ping":
            return {}
        handler = self._METHODS.get(method)
        if handler is None:
            raise ProtocolError(METHOD_NOT_FOUND, f"Method not found: {method}")
        try:
            return await handler(self, params or b"{}")
        except MALFORMED as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc

    async def _fill_in(self, params: bytes) -> Any:
        if self._elicit is None:
            raise ProtocolError(METHOD_NOT_FOUND, "This client has no user to ask.")
        question = _decode_form(params)
        answer = await _ask(self._elicit, question)
        if not question.url and (answer is True or answer == "accept"):
            answer = {}
        if isinstance(answer, Mapping):
            return {"action": "accept", "content": dict(cast("Mapping[str, Any]", answer))}
        if isinstance(answer, str) and answer in _ACTIONS:
            return {"action": answer}
        if answer is not None and not isinstance(answer, bool):
            what = f"elicit returned {type(answer).__name__}"
            raise ProtocolError(INTERNAL_ERROR, f'{what}. Return the values as a dict, or "decline" or "cancel".')
        return {"action": "cancel" if answer is None else "accept" if answer else "decline"}

    async def _complete(self, params: bytes) -> Any:
        if self._sample is None:
            raise ProtocolError(METHOD_NOT_FOUND, "This client has no language model.")
        answer = await _ask(self._sample, _decode_sample(params))
        if isinstance(answer, str):
            return SampleResult("assistant", Text(answer), "unknown", "endTurn")
        return answer

    async def _list_roots(self, params: bytes) -> Any:
        if self._roots is None:
            raise ProtocolError(METHOD_NOT_FOUND, "This client has no roots.")
        roots = self._roots

        async def find(_: None) -> list[Root]:
            found = roots() if callable(roots) else roots
            return [root_of(each) for each in (await found if inspect.isawaitable(found) else found)]

        return {"roots": await _ask(find, None)}

    _METHODS: ClassVar[Mapping[str, Callable[..., Awaitable[Any]]]] = {
        "elicitation/create": _fill_in,
        "sampling/createMessage": _complete,
        "roots/list": _list_roots,
    }


async def answer_all(
    handler: QuestionHandler, questions: Mapping[str, InputRequest], sender: str, request_id: int = 0
) -> Json:
    """Return the answers to questions by key. `sender` sent them, for error messages.

    Raises:
        InvalidResponse: The client can't answer one.
    """
    answers: Json = {}
    for key, question in questions.items():
        try:
            answers[key] = await handler.answer(question.method, bytes(question.params), request_id)
        except ProtocolError as exc:
            what = f"{sender} sent {add_article(question.method)} request that this client can't answer"
            raise InvalidResponse(f"{what}: {exc.message.rstrip('.')}.") from exc
    return answers


async def _ask(handler: Callable[[Any], Any], question: Any) -> Any:
    try:
        answer = handler(question)
        return await answer if inspect.isawaitable(answer) else answer
    except ProtocolError:
        raise
    except Exception as exc:
        _logger.exception("A client handler for questions raised an error.")
        raise ProtocolError(INTERNAL_ERROR, f"The client couldn't answer: {type(exc).__name__}") from exc


def root_of(place: str | Path | Root) -> Root:
    """Return a folder as a root."""
    if isinstance(place, Root):
        return place
    if isinstance(place, str) and "://" in place:
        return Root(place)
    path = Path(place).absolute()
    return Root(path.as_uri(), path.name)
