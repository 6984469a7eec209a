"""Requests to issuers that the operator configured. They may be on a private network."""

from millstream._http.client.fetch import FetchedDocument, fetch
from millstream._http.client.pool import allow_any

_MAX_BYTES = 512 * 1024
"""Maximum size of a document; a key set with certificates is the largest."""


async def ask_issuer(url: str) -> FetchedDocument:
    """Fetch a document from an issuer on any network."""
    return await fetch(url, is_allowed=allow_any, max_bytes=_MAX_BYTES)
