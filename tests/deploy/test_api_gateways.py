import re
from typing import Any

import pytest
import yaml

from millstream import Settings
from processes import ROOT

pytestmark = pytest.mark.check

EXAMPLES = ROOT / "examples"
OPEN = ("/mcp", "/sse", "/events", "/ws", "/chats", "/mcp/tools/list")
SHUT = ("/dashboard", "/dashboard/audit", "/gateway", "/chat", "/inspect", "/metrics", "/publish")
HEARTBEAT = Settings().heartbeat


def loaded(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text("utf-8"))


def test_traefik_streams_events_and_blocks_private_paths() -> None:
    routes = loaded("traefik/millstream.yaml")["http"]
    balancer = routes["services"]["millstream"]["loadBalancer"]
    assert balancer["responseForwarding"]["flushInterval"].startswith("-")
    assert balancer["healthCheck"]["path"] == "/readyz"
    assert "sticky" not in balancer
    (pattern,) = re.findall(r"!PathRegexp\(`(.+?)`\)", routes["routers"]["mcp"]["rule"])
    assert [path for path in (*OPEN, *SHUT) if re.search(pattern, path)] == list(SHUT)
    transports = routes["serversTransports"][balancer["serversTransport"]]
    assert transports["forwardingTimeouts"]["responseHeaderTimeout"] == "0s"
    static = loaded("traefik/traefik.yaml")
    assert static["entryPoints"]["web"]["transport"]["respondingTimeouts"]["writeTimeout"] == "0s"
    assert static["providers"]["file"]["filename"].endswith("/millstream.yaml")


def test_kong_streams_events_and_blocks_private_paths() -> None:
    configuration = loaded("kong.yaml")
    (service,), (upstream,) = configuration["services"], configuration["upstreams"]
    assert service["host"] == upstream["name"]
    assert service["retries"] == 0
    assert min(service["read_timeout"], service["write_timeout"]) > 1000 * HEARTBEAT
    public, private = service["routes"]
    assert public["response_buffering"] is public["request_buffering"] is public["strip_path"] is False
    assert public["preserve_host"] is True
    (path,) = private["paths"]
    assert [each for each in (*OPEN, *SHUT) if re.match(path.removeprefix("~"), each)] == list(SHUT)
    assert private["plugins"] == [{"name": "request-termination", "config": {"status_code": 404}}]
    assert upstream["healthchecks"]["active"]["http_path"] == "/readyz"
    assert "hash_on" not in upstream
