"""Processes of upstreams that are commands: who shares one, how many run, and when one is stopped."""

FACE = {
    "pool": ["ProcessPool", "UpstreamProcesses"],
}
"""Module -> names that other folders may import, besides the public ones of `millstream.gateway`."""
