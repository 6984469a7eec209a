"""The gateway for the chaos runs: upstreams that behave, one that's killed, and others that misbehave."""

import os
import sys
from pathlib import Path

from millstream import Server

STEADY = ("steady0", "steady1", "steady2")
MISBEHAVING = ("hanging", "flooding", "lying", "changing")
TIMEOUT = 2.0
"""Response timeout of an upstream that may fail, in seconds."""
START = 120.0
"""Seconds that the gateway waits for the first lists of each."""

mcp = Server("gateway", store=os.environ.get("CHAOS_STORE", "memory://"))


@mcp.tool
async def echo(text: str) -> str:
    """Return the text."""
    return text


def command(mode: str) -> list[str]:
    """Return the command of an upstream. The last word identifies the process."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("upstream.py")), mode]


for name in STEADY:
    mcp.upstream(name, command("steady"), timeout=START, start_timeout=START)
mcp.upstream("killed", command("killed"), timeout=TIMEOUT, start_timeout=START)
mcp.upstream(
    "sessions", command("sessions"), isolation="per_session", max_processes=4, timeout=TIMEOUT, start_timeout=START
)
for name in MISBEHAVING:
    mcp.upstream(name, command(name), timeout=TIMEOUT, start_timeout=START, max_bytes=1_000_000)
