"""Start the hub and the four services on this machine: ``python start.py [PORT …]``. Ctrl-C ends them.

The key of this run is new, unless MCP_SERVER_AUTH_KEY is set. The ports are 8000 to 8004, unless five others are given.
A service that stops starts again. If one ends with an error, all stop.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SERVICES = ("hub", "users", "order_service", "notifications", "analytics")


def main() -> None:
    """Start every service, and wait."""
    ports = dict(zip(SERVICES, map(int, sys.argv[1:] or range(8000, 8005)), strict=True))
    key = os.environ.get("MCP_SERVER_AUTH_KEY") or secrets.token_urlsafe(24)
    environment = {
        **os.environ,
        "MCP_SERVER_AUTH_KEY": key,
        "HUB_URL": f"http://127.0.0.1:{ports['hub']}",
        "USERS_URL": f"http://127.0.0.1:{ports['users']}",
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running: dict[str, subprocess.Popen[bytes]] = {}

    def run(name: str) -> None:
        command = [sys.executable, str(FOLDER / f"{name}.py")]
        variables = {**environment, "MILLSTREAM_PORT": str(ports[name])}
        running[name] = subprocess.Popen(command, env=variables)  # noqa: S603  its words are this program's

    try:
        for name in SERVICES:
            run(name)
        print(f"export MCP_SERVER_AUTH_KEY={key}")
        print(f"millstream call http://127.0.0.1:{ports['order_service']}/mcp place_order user=ada item=tea copies=2")
        print(f"millstream call http://127.0.0.1:{ports['analytics']}/mcp report")
        print(
            f"Open http://127.0.0.1:{ports['hub']}/chat, and sign in with the key. Each order appears there.",
            flush=True,
        )
        while True:
            time.sleep(0.2)
            for name, process in running.items():
                status = process.poll()
                if status is None:
                    continue
                if status > 0:
                    sys.exit(f"{name} ended, so all stop. For other ports: python start.py 8100 8101 8102 8103 8104")
                print(f"{name} stopped, and starts again.", flush=True)
                run(name)
    except KeyboardInterrupt:
        pass
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


if __name__ == "__main__":
    main()
