"""nginx with Nchan as a peer for broadcasts: `nchan.py PORT` becomes nginx, with one worker.

Data posted to `/publish` is sent unchanged to every subscriber of `/events` and `/ws`. It has no log, no
authentication, and only the machine's limits.
"""

import os
import sys
from pathlib import Path

FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
CONFIGURATION = """
load_module /usr/lib/nginx/modules/ngx_nchan_module.so;
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_timeout 3600;
  keepalive_requests 1000000000;
  {folders}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location = /publish {{ nchan_publisher; nchan_channel_id bench; nchan_channel_group bench; }}
    location = /events {{ nchan_subscriber eventsource; nchan_channel_id bench; nchan_channel_group bench; }}
    location = /ws {{ nchan_subscriber websocket; nchan_channel_id bench; nchan_channel_group bench; }}
  }}
}}
"""

folder = Path(__file__).resolve().parent.parent.parent / ".bench" / "nchan"
folder.mkdir(parents=True, exist_ok=True)
folders = " ".join(f"{name}_temp_path {name};" for name in FOLDERS)
(folder / "nginx.conf").write_text(CONFIGURATION.format(folders=folders, port=sys.argv[1]), "utf-8")
os.execv("/usr/sbin/nginx", ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"])  # noqa: S606
