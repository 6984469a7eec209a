"""Send HTTP requests as this package does: with bounds on what one server may send, and a guard against SSRF.

`Endpoint` sends requests to one URL through a `ConnectionPool`, with fixed headers, credentials, and redirects within
the origin. `guard_dial` connects only to addresses that a check accepts, for URLs that strangers choose. `Inflow` and
`ArrivingBytes` bound what several servers send together. For a single POST, see `millstream.extensions.http_post`.

Example:
    >>> url = parse_url("https://api.example.com/books")
    >>> pool = ConnectionPool(url, max_connections=10, max_body=2**20, connect_timeout=10.0)
    >>> reply = await Endpoint(url, {}, pool).send("GET", "accept: application/json\\r\\n", repeatable=True)
"""

from millstream._http.client import ArrivingBytes, Inflow, RateMeter
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool, allow_any, guard_dial, is_public, is_this_machine
from millstream._http.client.url import Url
from millstream._http.client.url import parse as parse_url
from millstream.client._endpoint import Endpoint, check_headers

__all__ = [
    "ArrivingBytes",
    "ConnectionPool",
    "Endpoint",
    "HttpReply",
    "Inflow",
    "RateMeter",
    "Url",
    "allow_any",
    "check_headers",
    "guard_dial",
    "is_public",
    "is_this_machine",
    "parse_url",
]
