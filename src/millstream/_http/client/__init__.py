"""The outbound HTTP engine, used by the client, for sign-ins, and to fetch key sets.

- `pool` sends requests over connections that it keeps open, which are in `connection`.
- `request` encodes a request's head, and `url` parses the URL and finds its proxy.
- `body`, `errors`, and `inflow` have the names that other packages take from here.
"""

from millstream._http.client.body import Body
from millstream._http.client.errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    TargetError,
    TlsFailed,
    TooLarge,
    TooMuchArriving,
    UnsendableRequest,
)
from millstream._http.client.inflow import LINES_PER_SECOND, ArrivingBytes, Inflow, RateMeter

__all__ = [
    "LINES_PER_SECOND",
    "ArrivingBytes",
    "Body",
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "Inflow",
    "InvalidResponse",
    "RateMeter",
    "TargetError",
    "TlsFailed",
    "TooLarge",
    "TooMuchArriving",
    "UnsendableRequest",
]
