"""Credentials that calls carry to upstreams. See `options` for the kinds."""
