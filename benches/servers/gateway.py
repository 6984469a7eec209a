"""Our gateway for the benchmarks, before `ours.py`."""

from benches.servers import upstream
from millstream import Server

mcp = Server("bench-gateway", version="1")
mcp.upstream("bench", upstream.start(), prefix="")
