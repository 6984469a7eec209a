"""Resources, resource templates, and prompts: their descriptions, contents, and messages."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, Unpack

from millstream._override import override
from millstream._protocol.content import Annotations, AnnotationsDict
from millstream._protocol.jsonrpc import encode
from millstream._protocol.revisions import project_prompt
from millstream._protocol.uri import check_uri
from millstream._protocol.uri_template import UriTemplate
from millstream._server.calls.call import Call
from millstream._server.features.sources import Item, ItemSource, both, source_of
from millstream._server.functions.dependencies import name_of
from millstream._server.functions.description import Labels, Names, check_options, describe_item
from millstream._server.functions.engine import encode_contents, encode_messages


class PromptOptions(Labels, total=False):
    """Options of ``@mcp.prompt``."""

    name: str | None
    thread: bool
    """Whether a `def` function runs in a worker thread."""
    scopes: Names | None
    """The scopes that a caller needs to see and get the prompt."""


class Prompt(Item):
    """A prompt from any source: ``Prompt(ItemSource("greet", run, read, schema={"properties": {"name": {}}}))``"""

    kind = "prompts"

    def __init__(self, source: ItemSource, *, scopes: Names | None = None, **labels: Unpack[Labels]) -> None:
        super().__init__(source.name, source, scopes, labels)
        required = set(source.schema.get("required", ()))
        properties = source.schema.get("properties", {})
        arguments = [
            {
                "name": each,
                **{key: properties[each][key] for key in ("title", "description") if key in properties[each]},
                **({"required": True} if each in required else {}),
            }
            for each in self.parameters
        ]
        self._described = describe_item({"name": self.name}, source.description, labels, arguments=arguments or None)

    def encode(self, value: Any, call: Call) -> bytes:
        """Return the members of the result for the call's revision.

        Args:
            value: The return value of the prompt's function.
            call: The call.

        Raises:
            LocalError: The value doesn't consist of messages.
        """
        members = project_prompt(encode_messages(value), call.revision)
        description = self._described.get("description")
        return members if description is None else b'"description":%b,%b' % (encode(description), members)


def prompt_of(function: Callable[..., Any], *, home: object = None, **options: Unpack[PromptOptions]) -> Prompt:
    """Return a prompt for a function.

    Args:
        function: Any callable. Its arguments arrive as text.
        home: The server it's registered on.
        options: See `PromptOptions` and `Labels`.

    Raises:
        TypeError, ValueError: The function can't be a prompt. The message explains what to change.
    """
    check_options(name_of(function), options, PromptOptions)
    source, rest = source_of(function, "prompt", home, options)
    return Prompt(source, **rest)


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|\{")
"""RFC 3986 §3.1. The scheme of a template can be a variable."""
HINTS = b',"ttlMs":0,"cacheScope":"private"'
"""A function may return a different value at any time, and for another caller."""


class ResourceLabels(Labels, total=False):
    """Options of a resource that don't concern its function."""

    annotations: Annotations | AnnotationsDict | None
    mime_type: str | None
    size: int | None
    """Size in bytes, for resources only."""
    scopes: Names | None
    """The scopes that a caller needs to see and read the resource."""


class ResourceOptions(ResourceLabels, total=False):
    """Options of ``@mcp.resource``."""

    name: str | None
    thread: bool
    """Whether a `def` function runs in a worker thread."""


class Readable(Item):
    """The common part of resources and templates: ``if isinstance(item, Readable): print(item.mime_type)``"""

    kind = "resources"

    def __init__(self, uri: str, source: ItemSource, labels: ResourceLabels) -> None:
        super().__init__(uri, source, labels.get("scopes"), labels)
        self.mime_type: str | None = labels.get("mime_type")
        self.meta: Mapping[str, Any] | None = labels.get("meta")
        """`_meta` of the contents and the listed item."""
        self._described = describe_item(
            {self.naming: uri, "name": source.name},
            source.description,
            labels,
            mimeType=self.mime_type,
            size=labels.get("size"),
        )

    def encode(self, value: Any, uri: str, call: Call) -> bytes:
        """Return the members of the result for a URI, for the call's revision.

        Args:
            value: The function's return value.

        Raises:
            LocalError: The value is `None`, which isn't content.
        """
        meta = self.meta if call.revision.named_titles else None
        members = encode_contents(value, uri, self.mime_type, meta)
        return members + HINTS if call.revision.result_type else members

    def unwrap(self, value: Any) -> Any:  # what the resource function returns
        """Return a value of `run` in the form that functions of this server receive when they read the resource."""
        return value


class Resource(Readable):
    """A resource with one URI. It takes no arguments: ``Resource("shop://opening-hours", source)``"""

    naming = "uri"

    def __init__(self, uri: str, source: ItemSource, **labels: Unpack[ResourceLabels]) -> None:
        super().__init__(uri, source, labels)
        if self.parameters:
            raise TypeError(
                f"resource {uri!r}: the function takes {', '.join(self.parameters)}, but the URI has no "
                "{variables} for them."
            )


class Pattern(Protocol):
    """The URI pattern of a template."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables, in order of first appearance."""
        ...

    def match(self, uri: str) -> dict[str, Any] | None:
        """Return the values of the variables in a URI, or None if the URI doesn't match.

        Args:
            uri: The URI that a client reads.
        """
        ...


class Template(Readable):
    """A family of resources. The variables of its URI are its arguments.

    Example:
        ``Template("shop://books/{isbn}", ItemSource("book", run, read, schema={"properties": {"isbn": {}}}))``
    """

    naming = "uriTemplate"
    find_rules: Callable[[str], Any] | None = None
    """Returns an object with the `visible` and `scopes` of one URI, which are added to the template's own."""

    def __init__(
        self,
        uri: str,
        source: ItemSource,
        *,
        pattern: Callable[[str], Pattern] = UriTemplate,
        **labels: Unpack[ResourceLabels],
    ) -> None:
        labels.pop("size", None)
        super().__init__(uri, source, labels)
        self._pattern = pattern
        self.template: Pattern = pattern(uri)
        if set(self.template.variables) != set(self.parameters):
            raise TypeError(
                f"resource template {uri!r}: the variables are {', '.join(self.template.variables) or 'none'}, "
                f"but the function takes {', '.join(self.parameters) or 'nothing'}. They must have the same "
                "names."
            )

    def at(self, uri: str) -> Self:
        """Return the template with the conditions for one of its URIs.

        Args:
            uri: The URI.
        """
        rules = None if self.find_rules is None else self.find_rules(uri)
        if rules is None:
            return self
        other = copy.copy(self)
        other.visible, other.scopes = both(self.visible, rules.visible), self.scopes | rules.scopes
        return other

    @override
    def with_name(self, name: str) -> Self:
        """Return a copy with another URI. See `Item`."""
        other = super().with_name(name)
        other.template = self._pattern(name)
        return other


def resource_of(
    uri: str, function: Callable[..., Any], *, home: object = None, **options: Unpack[ResourceOptions]
) -> Resource | Template:
    """Return a resource for a function, or a template if the URI has ``{variables}``.

    Args:
        uri: The URI for clients.
        function: Any callable with the variables as arguments.
        home: The server it's registered on.
        options: See `ResourceOptions` and `Labels`.

    Raises:
        TypeError, ValueError: The function can't be a resource. The message explains what to change.
    """
    check_options(name_of(function), options, ResourceOptions, Annotations)
    if "{" not in uri:
        check_uri("resource", uri)
    elif not _SCHEME.match(uri):  # `UriTemplate` checks the rest
        raise ValueError(f"resource {uri!r}: a URI must start with a scheme, as in 'shop://{uri.lstrip('/:')}'.")
    source, rest = source_of(function, "resource", home, options)
    return (Template if "{" in uri else Resource)(uri, source, **rest)
