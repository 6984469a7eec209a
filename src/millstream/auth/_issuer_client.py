"""Fetching what an issuer says that the operator has named: it may well be in the operator's own network."""

from millstream._http.client.dial import allow_any
from millstream._http.client.fetch import FetchedDocument, fetch

_MAX_BYTES = 512 * 1024
"""As many keys as are read from a set, with certificates."""


async def ask_issuer(url: str) -> FetchedDocument:
    """Fetch what an issuer says, wherever it is."""
    return await fetch(url, judge=allow_any, max_bytes=_MAX_BYTES)
