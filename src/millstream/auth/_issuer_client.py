"""Requests to issuers that the operator has configured, which may be in the operator's own network."""

from millstream._http.client.dial import allow_any
from millstream._http.client.fetch import FetchedDocument, fetch

_MAX_BYTES = 512 * 1024
"""Maximum bytes: the largest key set that is read, with certificates."""


async def ask_issuer(url: str) -> FetchedDocument:
    """Fetch a document of an issuer, on any network."""
    return await fetch(url, judge=allow_any, max_bytes=_MAX_BYTES)
