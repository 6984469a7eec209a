"""Resources and resource templates: descriptions for clients, and how their functions are read."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from millstream.protocol.uri_template import UriTemplate
from millstream.server.calls.context import Context
from millstream.server.calls.sync_context import SyncContext
from millstream.server.features.tools import runner
from millstream.server.functions.description import Labels, described
from millstream.server.functions.plan import plan

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|\{")
"""RFC 3986 §3.1; the scheme of a template may be a variable."""


class _Readable:
    """What resources and templates share."""

    __slots__ = ("_described", "mime_type", "plan", "run")

    def __init__(
        self,
        function: Callable[..., Any],
        address: Mapping[str, str],
        /,
        *,
        name: str | None = None,
        mime_type: str | None = None,
        size: int | None = None,
        thread: bool = True,
        home: object = None,
        **labels: Unpack[Labels],
    ) -> None:
        for uri in address.values():
            if not _SCHEME.match(uri):
                raise ValueError(f"resource {uri!r}: a URI begins with a scheme, as in 'shop://{uri.lstrip('/:')}'")
        self.plan = plan(function, kind="resource", contexts=(Context, SyncContext), name=name)
        self.mime_type = mime_type
        self.run = runner(self.plan, thread=thread, home=home)
        self._described = described(
            {**address, "name": self.plan.name}, self.plan.description, labels, mimeType=mime_type, size=size
        )

    def describe(self) -> dict[str, Any]:
        """The description in the newest shape."""
        return self._described


class Resource(_Readable):
    """A resource with one URI. Its function takes no arguments but the context."""

    __slots__ = ("uri",)

    def __init__(self, uri: str, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(function, {"uri": uri}, **options)
        if self.plan.parameters:
            raise TypeError(
                f"resource {uri!r}: the function takes {', '.join(self.plan.parameters)}, "
                "but the URI has no {variables} for them"
            )
        self.uri = uri

    def named(self, uri: str) -> "Resource":
        """The same resource under another URI."""
        other = copy.copy(self)
        other.uri = uri
        other._described = {**self._described, "uri": uri}
        return other


class Template(_Readable):
    """A family of resources. The variables of its URI are the typed parameters of its function."""

    __slots__ = ("template",)

    def __init__(self, uri: str, function: Callable[..., Any], **options: Any) -> None:
        options.pop("size", None)
        super().__init__(function, {"uriTemplate": uri}, **options)
        self.template = UriTemplate(uri)
        missing = set(self.template.variables) ^ set(self.plan.parameters)
        if missing:
            raise TypeError(
                f"resource template {uri!r}: its variables are {', '.join(self.template.variables) or 'none'}, the "
                f"function takes {', '.join(self.plan.parameters) or 'nothing'}: they must be the same names"
            )

    def named(self, uri: str) -> "Template":
        """The same template under another URI."""
        other = copy.copy(self)
        other.template = UriTemplate(uri)
        other._described = {**self._described, "uriTemplate": uri}
        return other
