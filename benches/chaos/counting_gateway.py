"""The gateway on each of several machines. A command counts for each person, and may ask before it counts."""

import os
import sys
from pathlib import Path

from benches.chaos.machines import PERSONS, key_of
from millstream import Server, auth

mcp = Server(
    "gateway",
    store=os.environ["CHAOS_STORE"],
    auth=auth.keys(named_keys={person: key_of(person) for person in PERSONS}),
    serve="hub",
)
mcp.upstream("counter", [sys.executable, "-I", "-S", str(Path(__file__).with_name("counter.py"))], prefix="")
