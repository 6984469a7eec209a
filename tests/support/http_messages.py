"""Requests and responses in the form that the server's HTTP connection passes to handlers."""

from millstream._http.message import Handler, HttpRequest, Response, header_lines

__all__ = ["Handler", "HttpRequest", "Response", "header_lines"]
