"""Resource templates: families of resources, whose URIs have variables."""

import asyncio
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import parse_qs, quote, unquote, unquote_plus

from millstream.compat import _types as types
from millstream.compat._pydantic_parts import AnyUrl
from millstream.compat.fastmcp._functions import OfFunction, call_function, failing, inside
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._resources import FunctionResource, Resource, given_of, labels, written
from millstream.compat.fastmcp._signatures import Signature, signature_of
from millstream.compat.fastmcp._ways import SDK, Ways

_VARIABLE = re.compile(r"\{([\w-]+)(\*?)\}")
_KEPT = "%/:?#[]@!$&'()*+,;=~"
"""Characters that are not encoded when a URI is compared."""
_QUERY = re.compile(r"\{\?([\w,]+)\}")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")


class ResourceTemplate(OfFunction):
    """A family of resources: the variables of its URI are arguments of its function.

    ``{name}`` stands for a part without slashes, ``{path*}`` for one with slashes, ``{?a,b}`` for a query.
    """

    def __init__(
        self,
        signature: Signature,
        uri_template: str,
        ways: Ways,
        *,
        mime_type: str | None = None,
        annotations: Any = None,
        **shared: Any,
    ) -> None:
        super().__init__(signature, ways, **shared)
        self.uri_template = uri_template
        self.mime_type: str = mime_type or "text/plain"
        self.annotations: types.Annotations | Any = (
            types.Annotations.model_validate(annotations) if isinstance(annotations, Mapping) else annotations
        )
        self.parameters: dict[str, Any] = signature.schema
        self.lists: frozenset[str] = lists_of(signature)
        self._matched = UriPattern(uri_template, self.lists)
        self.variables: tuple[str, ...] = self._matched.variables
        self.query: tuple[Any, ...] = self._matched.query

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], uri_template: str, name: str | None = None, *, ways: Ways = SDK, **options: Any
    ) -> "ResourceTemplate":
        """A template of a function.

        Raises:
            ValueError: its parameters are not the variables of the URI.
        """
        signature = signature_of(fn, ways, name=name)
        made = cls(signature, uri_template, ways, **options)
        taken, required = set(signature.names.values()), _required(signature)
        found = set(made.variables)
        if not found <= taken or not required <= found - set(made.query) or (ways.titles and found != taken):
            raise ValueError(_mismatch(found, set(made.query) & required, taken, ways))
        return made

    @property
    def key(self) -> str:
        """What the template is found by."""
        return self.uri_template

    def matches(self, uri: str) -> dict[str, Any] | None:
        """The values of the variables in a URI; None for one that is not of this family."""
        return self._matched.match(uri)

    async def read_in(self, variables: Mapping[str, Any], thread: RunInThread) -> Any:
        """What the function gives for these values.

        Raises:
            ValueError: it raised, or the values are wrong.
        """
        with failing("Error creating resource from template"):
            value = await call_function(self.signature, self.signature.read(variables), thread)
            return await value.read() if isinstance(value, Resource) else written(value, self.ways)

    async def create_resource(self, uri: str, params: dict[str, Any], context: Any = None) -> Resource:
        """The resource of one URI, read already."""
        with inside(context):
            value = await self.read_in(params, asyncio.to_thread)
        labels = ("name", "title", "description", "mime_type", "icons", "annotations", "meta")
        given = given_of({label: getattr(self, label) for label in labels})
        return FunctionResource(uri=AnyUrl(uri), fn=lambda: value, **given)

    def to_mcp_template(self) -> types.ResourceTemplate:
        """The template as clients see it."""
        return types.ResourceTemplate(uri_template=self.uri_template, mime_type=self.mime_type, **labels(self))


class UriPattern:
    """A template's URI as the other libraries read it."""

    def __init__(self, template: str, lists: frozenset[str] = frozenset()) -> None:
        self._lists = lists
        path = _QUERY.sub("", template)
        self.query = tuple(name for names in _QUERY.findall(template) for name in names.split(","))
        self.variables: tuple[str, ...] = (
            *(name.replace("-", "_") for name, _ in _VARIABLE.findall(path)),
            *self.query,
        )
        self._path = re.compile("".join(map(_piece, re.split(r"(\{[\w-]+\*?\})", path))))

    def match(self, uri: str) -> dict[str, Any] | None:
        """The values of the variables, those of lists as lists; None for a URI of another family."""
        path, _, query = uri.partition("?") if self.query else (uri, "", "")
        found = self._path.fullmatch(quote(path, safe=_KEPT))
        if found is None:
            return None
        asked = parse_qs(query)
        values: dict[str, Any] = {name: unquote(value) for name, value in found.groupdict().items()}
        values |= {name: asked[name][0] for name in self.query if name in asked and name not in self._lists}
        listed = _lists_in(query, self._lists.intersection(self.query))
        texts = itertools.chain(values.values(), *listed.values())
        return None if any(map(_leads_away, texts)) else values | listed


def _lists_in(query: str, names: Collection[str]) -> dict[str, list[str]]:
    """The lists of a query. Commas separate items, and a comma of an item is encoded (RFC 6570 §3.2.8)."""
    found: dict[str, list[str]] = {}
    for part in query.split("&") if names else ():
        name, sign, text = part.partition("=")
        if sign and unquote_plus(name) in names:
            items = [unquote_plus(item) for item in text.split(",")] if text else []
            found.setdefault(unquote_plus(name), []).extend(items)
    return found


def _leads_away(value: str) -> bool:
    """Whether a value, as the name of a file on any system, would be outside of its folder: functions use it so."""
    return "\0" in value or _ABSOLUTE.match(value) is not None or ".." in re.split(r"[/\\]", value)


def _piece(text: str) -> str:
    found = _VARIABLE.fullmatch(text)
    if found is None:
        return re.escape(quote(text, safe=_KEPT))
    return f"(?P<{found[1].replace('-', '_')}>{'.+' if found[2] else '[^/]+'})"


def lists_of(signature: Signature) -> frozenset[str]:
    """The parameters that take lists."""
    fields = signature.model.model_fields
    return frozenset(parameter for field, parameter in signature.names.items() if _is_list(fields[field].annotation))


def _is_list(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if kind in (Union, UnionType, Annotated):
        return any(map(_is_list, get_args(annotation)))
    several = isinstance(kind, type) and issubclass(kind, Sequence | AbstractSet)
    return several and not issubclass(kind, str | bytes | bytearray)


def _required(signature: Signature) -> set[str]:
    fields = signature.model.model_fields
    return {parameter for field, parameter in signature.names.items() if fields[field].is_required()}


def _mismatch(variables: set[str], needed: set[str], taken: set[str], ways: Ways) -> str:
    """Why a function doesn't fit its URI, as the library says it."""
    if ways.titles:
        return f"Mismatch between URI parameters {variables} and function parameters {taken}"
    if needed:
        return f"Query parameters {needed} must be optional: give them defaults"
    if not variables <= taken:
        return f"URI parameters {variables} must be a subset of the function parameters {taken}"
    return f"Required function parameters of {taken} must be a subset of the URI parameters {variables}"
