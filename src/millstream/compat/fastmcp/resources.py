"""Resources: text, bytes, functions, files, folders, web pages; and templates, which are families of resources."""

import abc
import asyncio
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote

from millstream.compat import types
from millstream.compat.fastmcp.conversion import as_wire
from millstream.compat.fastmcp.injection import current
from millstream.compat.fastmcp.signatures import Signature, signature_of
from millstream.compat.fastmcp.tools import RunInThread, call_function
from millstream.compat.fastmcp.ways import SDK, Ways
from millstream.compat.pydantic_parts import (
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    to_json,
    to_jsonable_python,
)
from millstream.protocol.errors import Cancelled, Declined, ProtocolError

_PATTERN = r"^[a-zA-Z0-9]+/[a-zA-Z0-9\-+.]+(;\s*[a-zA-Z0-9\-_.]+=[a-zA-Z0-9\-_.]+)*$"
_VARIABLE = re.compile(r"\{([\w-]+)(\*?)\}")
_KEPT = "%/:?#[]@!$&'()*+,;=~"
"""Characters that are not encoded when a URI is compared."""
_QUERY = re.compile(r"\{\?([\w,]+)\}")


class Resource(BaseModel, abc.ABC):
    """The base of all resources. A class of your own has an ``async def read(self) -> str | bytes``."""

    model_config = ConfigDict(validate_default=True, arbitrary_types_allowed=True, extra="allow")

    uri: Annotated[AnyUrl, BeforeValidator(lambda value: value if isinstance(value, AnyUrl) else AnyUrl(str(value)))]
    name: str | None = None
    title: str | None = None
    description: str | None = None
    mime_type: str = Field(default="text/plain", pattern=_PATTERN)
    icons: list[Any] | None = None
    annotations: Any = None
    meta: dict[str, Any] | None = None
    tags: set[str] = Field(default_factory=set)
    enabled: bool = True

    @field_validator("name", mode="before")
    @classmethod
    def _named(cls, name: str | None, info: Any) -> str:
        """Without a name, the URI is the name."""
        found = name or info.data.get("uri")
        if not found:
            raise ValueError("Either name or uri must be provided")
        return str(found)

    @property
    def key(self) -> str:
        """What the resource is found by."""
        return str(self.uri)

    @abc.abstractmethod
    async def read(self) -> Any:
        """The content: text, bytes, or a value for JSON."""

    async def read_in(self, thread: RunInThread) -> Any:
        """Read where there are threads for functions; the same as `read`, if that is all that the class has."""
        return written(await self.read(), SDK)

    @staticmethod
    def from_function(fn: Callable[..., Any], uri: str, **options: Any) -> "FunctionResource":
        """See `FunctionResource.from_function`."""
        return FunctionResource.from_function(fn, uri, **options)

    def to_mcp_resource(self) -> types.Resource:
        """The resource as clients see it."""
        return types.Resource(uri=str(self.uri), mime_type=self.mime_type, **_labels(self))


def _labels(item: Any) -> dict[str, Any]:
    return {
        "name": item.name,
        "title": item.title,
        "description": item.description,
        "icons": None if item.icons is None else [as_wire(icon) for icon in item.icons],
        "annotations": as_wire(item.annotations),
        "meta": item.meta,
    }


class TextResource(Resource):
    """Text."""

    text: str

    async def read(self) -> str:
        """The text."""
        return self.text


class BinaryResource(Resource):
    """Bytes."""

    data: bytes

    async def read(self) -> bytes:
        """The bytes."""
        return self.data


class FunctionResource(Resource):
    """What a function gives: text, bytes, a resource, or a value for JSON."""

    fn: Callable[..., Any] = Field(exclude=True)
    signature: Any = Field(default=None, exclude=True)
    ways: Any = Field(default=SDK, exclude=True)

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], uri: str, name: str | None = None, *, ways: Ways = SDK, **options: Any
    ) -> "FunctionResource":
        """A resource of a function without arguments.

        Raises:
            ValueError: a lambda without a name.
        """
        signature = signature_of(fn, ways, name=name)
        if options.get("mime_type") is None:
            options.pop("mime_type", None)
        if options.get("description") is None:
            options["description"] = signature.description or ("" if ways.empty_description else None)
        return cls(uri=uri, name=signature.name, fn=fn, signature=signature, ways=ways, **_given(options))

    async def read(self) -> Any:
        """What the function gives.

        Raises:
            ValueError: it raised.
        """
        return await self.read_in(asyncio.to_thread)

    async def read_in(self, thread: RunInThread) -> Any:
        """The same, by these threads."""
        try:
            signature = self.signature or signature_of(self.fn, self.ways, name=self.name)
            values = {} if signature.context is None else {signature.context: current.get(None)}
            value = await call_function(signature, values, thread)
            return await value.read() if isinstance(value, Resource) else written(value, self.ways)
        except (ProtocolError, Declined, Cancelled):
            raise
        except Exception as error:
            raise ValueError(f"Error reading resource {self.uri}: {error}") from error


def written(value: Any, ways: Ways) -> Any:
    """A function's value as text or bytes."""
    if isinstance(value, str | bytes) or is_contents(value):
        return value
    if isinstance(value, list) and value and all(isinstance(each, ResourceContent) for each in value):
        return ResourceResult(value)
    if ways.indent is None:
        return json.dumps(to_jsonable_python(value, fallback=str))
    return to_json(value, fallback=str, indent=ways.indent).decode()


def is_contents(value: Any) -> bool:
    """Whether a value is fastmcp's `ResourceResult`."""
    return isinstance(value, ResourceResult)


class ResourceContent:
    """One content of a resource, with its media type: ``ResourceContent("…", mime_type="text/html")``."""

    def __init__(self, content: Any, mime_type: str | None = None, meta: dict[str, Any] | None = None) -> None:
        self.content = content if isinstance(content, str | bytes) else to_json(content, fallback=str).decode()
        default = "application/octet-stream" if isinstance(content, bytes) else "text/plain"
        self.mime_type = mime_type or (default if isinstance(content, str | bytes) else "application/json")
        self.meta = meta


class ResourceResult:
    """All contents of a resource, where that is more than one text or bytes."""

    def __init__(self, contents: Any, meta: dict[str, Any] | None = None) -> None:
        items = contents if isinstance(contents, list) else [contents]
        self.contents = [each if isinstance(each, ResourceContent) else ResourceContent(each) for each in items]
        self.meta = meta


class FileResource(Resource):
    """A file, read when it is asked for."""

    path: Path
    is_binary: bool = False

    def model_post_init(self, context: Any, /) -> None:
        """The path has to be absolute; what is not of a text type is read as bytes.

        Raises:
            ValueError: the path is relative.
        """
        if not self.path.is_absolute():
            raise ValueError("Path must be absolute")
        self.is_binary = self.is_binary or not self.mime_type.startswith("text/")

    async def read(self) -> str | bytes:
        """The content of the file.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return await asyncio.to_thread(self.path.read_bytes if self.is_binary else self.path.read_text)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"Error reading file {self.path}: {error}") from error


class DirectoryResource(Resource):
    """The names of the files in a folder, as JSON."""

    path: Path
    recursive: bool = False
    pattern: str | None = None
    mime_type: str = Field(default="application/json", pattern=_PATTERN)

    def model_post_init(self, context: Any, /) -> None:
        """The path has to be absolute.

        Raises:
            ValueError: it is relative.
        """
        if not self.path.is_absolute():
            raise ValueError("Path must be absolute")

    def list_files(self) -> list[Path]:
        """What is in the folder.

        Raises:
            OSError: it is no folder, or cannot be read.
        """
        if not self.path.exists():
            raise FileNotFoundError(f"Directory not found: {self.path}")
        if not self.path.is_dir():
            raise NotADirectoryError(f"Not a directory: {self.path}")
        find = self.path.rglob if self.recursive else self.path.glob
        return list(find(self.pattern or "*"))

    async def read(self) -> str:
        """The list.

        Raises:
            ValueError: the folder cannot be read.
        """
        try:
            files = await asyncio.to_thread(self.list_files)
        except OSError as error:
            raise ValueError(f"Error reading directory {self.path}: {error}") from error
        names = [str(each.relative_to(self.path)) for each in files if each.is_file()]
        return json.dumps({"files": names}, indent=2)


class HttpResource(Resource):
    """A page of the web, fetched when it is asked for."""

    url: str
    mime_type: str = Field(default="application/json", pattern=_PATTERN)

    async def read(self) -> str:
        """The page.

        Raises:
            ValueError: it cannot be fetched.
        """
        from urllib.request import urlopen  # noqa: PLC0415  few programs need it

        def fetch() -> str:
            with urlopen(self.url) as reply:  # noqa: S310  the program's author names the URL
                return str(reply.read().decode(reply.headers.get_content_charset() or "utf-8"))

        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"HttpResource reads http and https URLs, not {self.url!r}")
        return await asyncio.to_thread(fetch)


class ResourceTemplate:
    """A family of resources: the variables of its URI are arguments of its function.

    ``{name}`` stands for a part without slashes, ``{path*}`` for one with slashes, ``{?a,b}`` for a query.
    """

    def __init__(
        self,
        signature: Signature,
        uri_template: str,
        ways: Ways,
        *,
        title: str | None = None,
        description: str | None = None,
        mime_type: str | None = None,
        icons: Sequence[Any] | None = None,
        annotations: Any = None,
        meta: dict[str, Any] | None = None,
        tags: set[str] | None = None,
        enabled: bool = True,
    ) -> None:
        self.signature = signature
        self.uri_template = uri_template
        self.ways = ways
        self.name = signature.name
        self.title = title
        self.description = signature.description if description is None else description
        self.mime_type = mime_type or "text/plain"
        self.icons = icons
        self.annotations = types.Annotations(**annotations) if isinstance(annotations, Mapping) else annotations
        self.meta = meta
        self.tags = set(tags or ())
        self.enabled = enabled
        self.parameters = signature.schema
        self._matched = UriPattern(uri_template)
        self.variables, self.query = self._matched.variables, self._matched.query

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
            raise ValueError(f"Mismatch between URI parameters {found} and function parameters {taken}")
        return made

    @property
    def fn(self) -> Callable[..., Any]:
        """The function."""
        return self.signature.function

    @property
    def context_kwarg(self) -> str | None:
        """The parameter that gets the context."""
        return self.signature.context

    @property
    def key(self) -> str:
        """What the template is found by."""
        return self.uri_template

    def matches(self, uri: str) -> dict[str, str] | None:
        """The values of the variables in a URI; None for one that is not of this family."""
        return self._matched.match(uri)

    async def read_in(self, variables: Mapping[str, Any], thread: RunInThread) -> Any:
        """What the function gives for these values.

        Raises:
            ValueError: it raised, or the values are wrong.
        """
        try:
            values = self.signature.read(variables)
            if self.signature.context is not None:
                values[self.signature.context] = current.get(None)
            value = await call_function(self.signature, values, thread)
            return await value.read() if isinstance(value, Resource) else written(value, self.ways)
        except (ProtocolError, Declined, Cancelled):
            raise
        except Exception as error:
            raise ValueError(f"Error creating resource from template: {error}") from error

    async def create_resource(self, uri: str, params: dict[str, Any], context: Any = None) -> Resource:
        """The resource of one URI, read already."""
        token = current.set(context) if context is not None else None
        try:
            value = await self.read_in(params, asyncio.to_thread)
        finally:
            if token is not None:
                current.reset(token)
        labels = ("name", "title", "description", "mime_type", "icons", "annotations", "meta")
        given = _given({label: getattr(self, label) for label in labels})
        return FunctionResource(uri=AnyUrl(uri), fn=lambda: value, **given)

    def to_mcp_template(self) -> types.ResourceTemplate:
        """The template as clients see it."""
        return types.ResourceTemplate(uri_template=self.uri_template, mime_type=self.mime_type, **_labels(self))


class UriPattern:
    """A template's URI as the other libraries read it."""

    def __init__(self, template: str) -> None:
        path = _QUERY.sub("", template)
        self.query = tuple(name for names in _QUERY.findall(template) for name in names.split(","))
        self.variables: tuple[str, ...] = (
            *(name.replace("-", "_") for name, _ in _VARIABLE.findall(path)),
            *self.query,
        )
        self._path = re.compile("".join(map(_piece, re.split(r"(\{[\w-]+\*?\})", path))))

    def match(self, uri: str) -> dict[str, str] | None:
        """The values of the variables; None for a URI of another family."""
        path, _, query = uri.partition("?") if self.query else (uri, "", "")
        found = self._path.fullmatch(quote(path, safe=_KEPT))
        if found is None:
            return None
        values = {name: unquote(value) for name, value in found.groupdict().items()}
        if any("\0" in value or ".." in value.split("/") for value in values.values()):
            return None  # functions use values as file names
        asked = parse_qs(query)
        return {**values, **{name: asked[name][0] for name in self.query if name in asked}}


def _piece(text: str) -> str:
    found = _VARIABLE.fullmatch(text)
    if found is None:
        return re.escape(quote(text, safe=_KEPT))
    return f"(?P<{found[1].replace('-', '_')}>{'.+' if found[2] else '[^/]+'})"


def _required(signature: Signature) -> set[str]:
    fields = signature.model.model_fields
    return {parameter for field, parameter in signature.names.items() if fields[field].is_required()}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def is_template(uri: str, signature: inspect.Signature) -> bool:
    """Whether a URI has variables."""
    return bool(_VARIABLE.search(uri) or _QUERY.search(uri))
