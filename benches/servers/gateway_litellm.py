"""LiteLLM's proxy as a gateway, before `ours.py`: `gateway_litellm.py PROGRAM PORT`, with the program's path.

It uses uvloop, and writes no log of requests. It has no database and no models.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benches.servers import upstream
from benches.wire import GATEWAY_KEY

program, port = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
server = {"url": upstream.start(), "transport": "http", "allow_all_keys": True}
settings = {"model_list": [], "mcp_servers": {"bench": server}, "general_settings": {"master_key": GATEWAY_KEY}}
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "litellm.yaml"
    file.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    # The price list of models that's in the package, so that the proxy doesn't fetch one.
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    command = [program, "--config", str(file), "--host", "127.0.0.1", "--port", port, "--telemetry", "False"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            process.wait()
        finally:
            process.kill()  # it takes longer to end by itself than `Running.stop` waits
