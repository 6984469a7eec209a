"""Credentials for upstreams: what each call carries there, and how it comes by it. See `options` for the kinds."""

from millstream.gateway.credentials.opening import open_credentials
from millstream.gateway.credentials.source import UpstreamCredentials

__all__ = ["UpstreamCredentials", "open_credentials"]
