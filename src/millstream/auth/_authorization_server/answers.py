"""Responses of the authorization server: errors and results as JSON, and redirects to the client."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from millstream._http.message import JSON_HEAD, HttpRequest, Response
from millstream._protocol.jsonrpc import encode

NO_STORE = b"cache-control: no-store\r\npragma: no-cache\r\n"
MAX_FORM = 64 * 1024
_MAX_FIELDS = 40
_REPEATED = ("resource",)
"""Parameters that may be repeated (RFC 8707 §2)."""


class OAuthError(Exception):
    """An OAuth error (RFC 6749): a code for programs, and a description for people."""

    def __init__(self, error: str, text: str, status: int = 400, head: bytes = b"") -> None:
        super().__init__(text)
        self.error = error
        self.status = status
        self.head = head

    def response(self) -> Response:
        """Return the HTTP response."""
        body = {"error": self.error, "error_description": str(self)}
        return Response(encode(body), self.status, JSON_HEAD + NO_STORE + self.head)


def reply(body: Mapping[str, Any], status: int = 200) -> Response:
    """Return a JSON response that must not be cached."""
    return Response(encode(body), status, JSON_HEAD + NO_STORE)


class Parameters:
    """The parameters of a query or form."""

    def __init__(self, raw: bytes) -> None:
        """Parse the parameters. Bytes that aren't UTF-8 become surrogates.

        Raises:
            OAuthError: there are too many parameters.
        """
        text = raw.decode("utf-8", "surrogateescape")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_FIELDS)
        except ValueError:
            raise OAuthError("invalid_request", "There are too many parameters.") from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)
        self.repeated = sorted(
            name for name, values in self._values.items() if len(values) > 1 and name not in _REPEATED
        )

    def get(self, name: str) -> str:
        """Return a parameter's value; empty if it's missing or repeated (RFC 6749 §3.1)."""
        values = self._values.get(name, [])
        return values[0] if len(values) == 1 else ""

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def values(self) -> dict[str, str]:
        """Return the parameters that aren't repeated."""
        return {name: values[0] for name, values in self._values.items() if len(values) == 1}

    def all(self, name: str) -> tuple[str, ...]:
        """Return all nonempty values of a parameter."""
        return tuple(value for value in self._values.get(name, []) if value)


def form_of(request: HttpRequest) -> Parameters:
    """Parse the form in a request's body.

    Raises:
        OAuthError: the body isn't a form, is too large, or has a repeated parameter.
    """
    kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "Send a form as application/x-www-form-urlencoded.", 415)
    if len(request.body) > MAX_FORM:
        raise OAuthError("invalid_request", "The form is too large.", 413)
    form = Parameters(request.body)
    if form.repeated:
        raise OAuthError("invalid_request", "A parameter is repeated.")
    return form


def way_back(redirect_uri: str, values: Mapping[str, str | None]) -> Response:
    """Redirect the browser to the client with a response, keeping the URI's own query (RFC 6749 §3.1.2)."""
    said = "&".join(
        f"{name}={quote(value.encode('utf-8', 'surrogateescape'), safe='')}"
        for name, value in values.items()
        if value is not None
    )
    mark = "&" if urlsplit(redirect_uri).query else "" if redirect_uri.endswith("?") else "?"
    return see(f"{redirect_uri}{mark}{said}")


def see(url: str, head: bytes = b"") -> Response:
    """Redirect the browser to GET a URL, whatever the current method (RFC 9700 §4.12)."""
    lines = b"location: %b\r\n%breferrer-policy: no-referrer\r\n" % (url.encode("ascii"), NO_STORE)
    return Response(b"", 303, lines + head)
