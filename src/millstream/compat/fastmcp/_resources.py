"""Resources: text, bytes, functions, files, folders, web pages."""

import abc
import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from millstream._protocol.json_schema import is_array
from millstream.compat import _types as types
from millstream.compat._pydantic_parts import (
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    to_json,
    to_jsonable_python,
)
from millstream.compat.fastmcp._conversion import as_wire
from millstream.compat.fastmcp._functions import call_function, failing
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._signatures import signature_of
from millstream.compat.fastmcp._ways import SDK, Ways

_PATTERN = r"^[a-zA-Z0-9]+/[a-zA-Z0-9\-+.]+(;\s*[a-zA-Z0-9\-_.]+=[a-zA-Z0-9\-_.]+)*$"


class Resource(BaseModel, abc.ABC):
    """The base of all resources. A class of your own has an ``async def read(self) -> str | bytes``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(validate_default=True, arbitrary_types_allowed=True, extra="allow")

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

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], uri: str, name: str | None = None, *, ways: Ways = SDK, **options: Any
    ) -> "FunctionResource":
        """See `FunctionResource.from_function`."""
        return FunctionResource.from_function(fn, uri, name, ways=ways, **options)

    def to_mcp_resource(self) -> types.Resource:
        """The resource as clients see it."""
        return types.Resource(uri=str(self.uri), mime_type=self.mime_type, **labels(self))


def labels(item: Any) -> dict[str, Any]:
    """What clients see of a resource or a template beside its address."""
    return {
        "name": item.name,
        "title": item.title,
        "description": item.description,
        "icons": None if item.icons is None else [as_wire(icon) for icon in item.icons],
        "annotations": as_wire(item.annotations),
        "_meta": item.meta,
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
        return cls(uri=AnyUrl(uri), name=signature.name, fn=fn, signature=signature, ways=ways, **given_of(options))

    async def read(self) -> Any:
        """What the function gives.

        Raises:
            ValueError: it raised.
        """
        return await self.read_in(asyncio.to_thread)

    async def read_in(self, thread: RunInThread) -> Any:
        """The same, by these threads."""
        with failing(f"Error reading resource {self.uri}"):
            signature = self.signature or signature_of(self.fn, self.ways, name=self.name)
            value = await call_function(signature, {}, thread)
            return await value.read() if isinstance(value, Resource) else written(value, self.ways)


def written(value: Any, ways: Ways) -> Any:
    """A function's value as text or bytes."""
    if isinstance(value, str | bytes) or is_contents(value):
        return value
    if is_array(value) and value and all(isinstance(each, ResourceContent) for each in value):
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
        self.content: str | bytes = (
            content if isinstance(content, str | bytes) else to_json(content, fallback=str).decode()
        )
        default = "application/octet-stream" if isinstance(content, bytes) else "text/plain"
        self.mime_type: str = mime_type or (default if isinstance(content, str | bytes) else "application/json")
        self.meta = meta


class ResourceResult:
    """All contents of a resource, where that is more than one text or bytes."""

    def __init__(self, contents: Any, meta: dict[str, Any] | None = None) -> None:
        items: list[Any] = contents if is_array(contents) else [contents]
        self.contents: list[ResourceContent] = [
            each if isinstance(each, ResourceContent) else ResourceContent(each) for each in items
        ]
        self.meta = meta

    def __repr__(self) -> str:
        """The contents: programs print results to see what was read."""
        shown = [each.content for each in self.contents]
        return f"ResourceResult(contents={shown!r}, meta={self.meta!r})"


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
            OSError: it isn't a folder, or cannot be read.
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


def given_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that have a value."""
    return {name: value for name, value in options.items() if value is not None}
