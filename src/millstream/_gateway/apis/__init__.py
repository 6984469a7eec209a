"""HTTP APIs as upstreams: an OpenAPI document becomes items that send requests."""

FACE = {
    "items": ["LocalApp", "register"],
    "upstream": ["API_ITEMS", "ApiUpstream"],
}
"""Module -> names that other folders may import, besides the public ones of `millstream.gateway`."""
