"""Processes of upstreams that are commands: how many run, and when one is stopped.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `pool`: ProcessPool, UpstreamProcesses
"""
