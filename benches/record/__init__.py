"""Records how real clients write their requests: ``python -m benches.record NAME COMMAND…``."""
