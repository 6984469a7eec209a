from itertools import product

import pytest

from feature_table import FEATURES, features_table
from route_tables import LIMITS, TABLES, judge_messages, judge_routes, key_of, public_paths, routes_of, running
from scripts.docs import ROOT, TABLE
from wire import encode_headers, encode_request

pytestmark = pytest.mark.check

PAGES = {
    "features": ["reference/features.md"],
    "limits": ["reference/limits.md"],
    "public-paths": ["reference/routes.md"],
}
ALL_TABLES = {**TABLES, "features": features_table}
NOT_COUNTED = (
    "/health /livez /readyz /metrics /assets/* /hub.js /files /files/* /dashboard/history /dashboard/calls "
    "/dashboard/readers /dashboard/audit /dashboard/events /gateway/upstreams /gateway/items /inspect/log"
)
"""Health checks, scrapes, files, and what pages poll."""
PROBES = ("/health", "/livez", "/readyz")
FOREIGN = {"host": "evil.com", "origin": "https://evil.com"}


@pytest.mark.parametrize("name", ALL_TABLES)
async def test_pages_contain_the_tables_that_servers_produce(name: str) -> None:
    wanted = await ALL_TABLES[name]()
    for page in PAGES[name]:
        text = (ROOT / "docs" / page).read_text("utf-8")
        found = [match["body"] for match in TABLE.finditer(text) if match["name"] == name]
        assert found == [wanted], f"The table of docs/{page} is outdated. Run: make docs"


def test_each_feature_names_existing_tests() -> None:
    for feature in FEATURES:
        for test in {feature.test, *feature.elsewhere.values()} - {""}:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / path).read_text("utf-8"), test


@pytest.mark.parametrize("limit", LIMITS)
async def test_limits_count_requests_for_all_paths_but_probes_files_and_polls(limit: str) -> None:
    judged = await judge_routes(limit)
    assert {path for (_, path), counts in judged.items() if counts == "no"} == set(NOT_COUNTED.split())
    assert {method for (method, path), counts in judged.items() if not path and counts == "yes"} > {"GET", "PUT"}
    assert judged["PATCH", "/health"] == "yes", "a method that a path doesn't have"


@pytest.mark.parametrize("limit", LIMITS)
async def test_limits_count_messages_on_every_transport(limit: str) -> None:
    judged = await judge_messages(limit)
    exempt = {kind for (kind, _), counts in judged.items() if counts != "yes"}
    assert exempt == {
        "a notification", "a response to a question", "the end of a session",
        "opening a WebSocket",
        "`OPTIONS` for a known path, such as a browser's preflight request",
    }  # fmt: skip


async def test_only_listed_paths_need_no_credential() -> None:
    public = set(await public_paths())
    async with running(card_url="https://mcp.example.com/mcp") as world:
        for path, route in routes_of(world).items():
            for method in route.handlers:
                peer = await world.running.connect()
                fields = encode_headers({"host": "127.0.0.1:8000"})
                await peer.send(encode_request(method, path.replace("*", "x"), fields, b""))
                status, _ = await peer.head()
                peer.close()
                is_listed = path in public or "/assets/" in path
                assert (status != 401) == is_listed, (method, path, status)


async def test_foreign_hosts_and_origins_are_rejected_except_at_probes_and_what_every_page_may_read() -> None:
    async with running(card_url="https://mcp.example.com/mcp") as world:
        accepted: dict[str, set[str]] = {"host": set(), "origin": set()}
        for path, route in routes_of(world).items():
            for method, (header, value) in product(route.handlers, FOREIGN.items()):
                peer = await world.running.connect()
                fields = {"host": "127.0.0.1:8000", "authorization": f"Bearer {key_of(0)}", header: value}
                await peer.send(encode_request(method, path.replace("*", "x"), encode_headers(fields), b""))
                status, _ = await peer.head()
                peer.close()
                if status not in (403, 421):
                    accepted[header].add(path)
    assert accepted["host"] == set(PROBES)
    others = {path for path in accepted["origin"] - set(PROBES) if not path.startswith("/.well-known/")}
    assert others == {"/mcp/server-card", "/register", "/revoke", "/token"}
