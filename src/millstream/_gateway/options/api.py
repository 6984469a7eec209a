"""Options of an API as an upstream, and their checks."""

from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from millstream.client import TargetError, parse_url
from millstream.protocol import SuggestionMeta


class OpenApi(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """An API, and which operations to offer. ``OpenApi(document="https://shop.example/openapi.json",
    tags=("orders",))``
    """

    document: Any
    """URL or file of an OpenAPI document in JSON or YAML, the document as a dict, or a FastAPI application."""
    base_url: str = ""
    """Base URL of the API, by default the first server of the document, which must have the document's own origin."""
    hosts: tuple[str, ...] = ()
    """Origins of other servers that operations may have: ``https://upload.example.com``. They get the credentials."""
    references: tuple[str, ...] = ()
    """URLs of folders with other files that the document may refer to: ``https://schemas.example.com/common/``. They
    don't get the credentials.
    """
    output_schemas: bool = False
    """Whether tools have output schemas. A response that doesn't match is then an error."""
    tags: tuple[str, ...] = ()
    """Offer only operations with one of these tags."""
    operations: tuple[str, ...] = ()
    """Offer only operations with a name, or a method and path, that match one of these patterns: ``GET /orders/*``."""


def check_api(config: Any) -> None:
    """Check that an `UpstreamConfig` with an API is valid.

    Raises:
        ValueError: The configuration is invalid. The message gives the reason.
    """
    if config.target is not None:
        raise ValueError(f"upstream {config.name!r}: pass either a target or openapi=, not both.")
    document = config.openapi.document if isinstance(config.openapi, OpenApi) else config.openapi
    if is_application(document):
        if config.auth is not None or config.headers:
            raise ValueError(
                f"upstream {config.name!r}: an application in this process doesn't support auth and "
                "headers. Remove them."
            )
    elif not isinstance(document, str | Path | dict):
        raise ValueError(
            f"upstream {config.name!r}: openapi= takes the URL or file of a document, the document as a dict, or a "
            "FastAPI application."
        )
    if isinstance(config.openapi, OpenApi):
        if bad := [each for each in config.openapi.references if not _is_url(each)]:
            raise ValueError(f"upstream {config.name!r}: {bad[0]!r} in references isn't a URL.")
        try:
            check_hosts(config.openapi.hosts)
        except ValueError as exc:
            raise ValueError(f"upstream {config.name!r}: {exc}") from None


def _is_url(text: str) -> bool:
    try:
        return bool(parse_url(text))
    except TargetError:
        return False


def is_application(document: Any) -> bool:
    """Return whether a document is an application that generates one, such as FastAPI's."""
    return callable(getattr(document, "openapi", None))


def check_hosts(hosts: Collection[str]) -> None:
    """Check that each host is an origin, because operations can then use every path there.

    Raises:
        ValueError: One isn't.
    """
    for each in hosts:
        parts = urlsplit(each)
        if not (parts.scheme in ("http", "https") and parts.netloc and parts.path in ("", "/")) or parts.query:
            raise ValueError(f"{each!r} in hosts isn't an origin. Write it without a path: https://api.example.com")
