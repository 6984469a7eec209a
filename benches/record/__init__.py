"""Records how the official clients write a `tools/call`: ``python -m benches.record NAME COMMAND…``."""
