"""Requests and responses as the server's HTTP connection passes them to handlers, for tests of what carries them."""

from millstream._http.message import Handler, HttpRequest, Response, header_lines

__all__ = ["Handler", "HttpRequest", "Response", "header_lines"]
