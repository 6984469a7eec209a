"""Credentials for upstreams: what each call carries there, and how it comes by it. See `options` for the kinds."""
