"""The gateway whose upstreams are replaced: one of each kind, with an account and without one."""

import os

import msgspec

from benches.chaos.gateway import TIMEOUT
from benches.chaos.replacements import KEY, Target
from millstream import Server, auth
from millstream.gateway import per_user_oauth

mcp = Server("gateway", store=os.environ.get("CHAOS_STORE", "memory://"), auth=auth.keys(named_keys={"chaos": KEY}))
for target in msgspec.json.decode(os.environ["CHAOS_TARGETS"], type=list[Target]):
    target.join(mcp, auth=per_user_oauth() if target.account else None, timeout=TIMEOUT)
