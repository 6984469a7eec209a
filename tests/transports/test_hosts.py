from collections.abc import Sequence

import pytest

from cases import for_each
from growth import MIB, measured
from http_messages import HttpRequest, Response
from millstream._http.hosts import HostPolicy, parse_authority

Fields = Sequence[tuple[bytes, bytes]]

LOCAL = HostPolicy()
PUBLIC = HostPolicy(
    ["mcp.example.com", "*.apps.example.com", "odd.example.com:8443"],
    ["https://app.example.com", "https://*.pages.example.com", "http://dev.example.com:3000/"],
    loopback_bind=False,
)


def check(policy: HostPolicy, method: str, fields: Fields, peer: str = "") -> Response | None:
    """Return the policy's refusal of a request, if any."""
    return policy.check(HttpRequest(method, "/mcp", fields, dict(fields), peer=peer), method)


def status(policy: HostPolicy, *fields: tuple[bytes, bytes], method: str = "POST") -> int:
    """What the policy answers; 200 for nothing."""
    refusal = check(policy, method, fields)
    return 200 if refusal is None else refusal.status


def host(value: bytes, policy: HostPolicy = LOCAL) -> int:
    """What it answers to a Host."""
    return status(policy, (b"host", value))


def origin(value: bytes, at: bytes = b"127.0.0.1:8000", policy: HostPolicy = LOCAL) -> int:
    """What it answers to an Origin."""
    return status(policy, (b"host", at), (b"origin", value))


@for_each(
    "value",
    [b"127.0.0.1", b"127.0.0.1:8000", b"[::1]:8000", b"192.168.1.5:80", b"[2001:db8::1]", b"203.0.113.9", b"[::]:1",
     b"localhost", b"localhost:65535", b"LOCALHOST:1", b"localhost.", b"app.localhost:3000", b"127.0.0.1 ",
     b"[::ffff:1.2.3.4]"],
)  # fmt: skip
def test_addresses_and_loopback_names_are_allowed_hosts(value: bytes) -> None:
    assert host(value) == host(value, PUBLIC) == 200


@for_each(
    "value",
    [b"evil.com", b"localhost.evil.com", b"evil-localhost", b"127.0.0.1.evil.com", b"127.1", b"2130706433",
     b"0x7f.0.0.1", b"1.2.3.4.5", b"mcp.example.com.evil.com", b"com", b"apps.example.com", b"evilapps.example.com",
     b"odd.example.com", b"odd.example.com:443"],
)  # fmt: skip
def test_error_421_for_other_hosts_mentions_the_setting(value: bytes) -> None:
    assert host(value) == host(value, PUBLIC) == 421
    refusal = check(LOCAL, "GET", [(b"host", value)])
    assert refusal is not None
    assert b"allowed_hosts" in refusal.body
    assert b"MILLSTREAM_ALLOWED_HOSTS" in refusal.body


@for_each(
    "value", [b"mcp.example.com", b"MCP.Example.com:443", b"mcp.example.com.", b"a.apps.example.com",
              b"a.b.apps.example.com:8080", b"odd.example.com:8443"],
)  # fmt: skip
def test_listed_hosts_are_allowed(value: bytes) -> None:
    assert host(value, PUBLIC) == 200


@for_each(
    "value",
    [b"", b" ", b"a b", b"user@localhost", b"localhost/x", b"localhost:", b"localhost:99999", b"localhost:-1",
     b"localhost:80:80", b"[::1", b"::1", b"[::1]x", b"[1.2.3.4]", b"[:::]", b"local\xc3\xa9", b"a,b", b"http://a",
     b"localhost\x00", b"localhost:8\xb2", b".", b"a/?x=", b"*", b"x" * 300],
)  # fmt: skip
def test_malformed_hosts_get_400(value: bytes) -> None:
    """RFC 9112 §3.2."""
    assert host(value) == 400


def test_missing_and_duplicate_hosts_get_400() -> None:
    """RFC 9112 §3.2."""
    assert status(LOCAL) == 400
    assert status(LOCAL, (b"host", b"localhost"), (b"host", b"localhost")) == 400
    assert status(LOCAL, (b"host", b"evil.com"), (b"host", b"localhost")) == 400


def test_duplicate_origins_get_400() -> None:
    good = (b"host", b"localhost")
    assert status(LOCAL, good, (b"origin", b"http://evil.com"), (b"origin", b"http://localhost")) == 400
    assert status(LOCAL, good, (b"accept", b"a"), (b"accept", b"b")) == 200


def test_wildcard_allows_any_host() -> None:
    anyone = HostPolicy(["*"])
    assert host(b"evil.com", anyone) == 200
    assert host(b"a b", anyone) == 400


def test_allowed_hosts_are_cached_within_bounds() -> None:
    anyone = HostPolicy(["*"])
    for number in range(3000):
        assert host(b"h%d.example.com" % number, anyone) == 200
    assert 0 < len(anyone.good) <= 1024
    assert host(b"evil.com") == 421
    assert b"evil.com" not in LOCAL.good


@for_each(
    "value", [b"http://localhost:3000", b"https://localhost", b"http://127.0.0.1:9", b"http://[::1]:5173",
              b"http://app.localhost", b"HTTP://LOCALHOST:3000"],
)  # fmt: skip
def test_loopback_origins_are_allowed_on_a_loopback_bind(value: bytes) -> None:
    assert origin(value) == 200
    assert origin(value, b"203.0.113.9", PUBLIC) == 403


@for_each(
    "value",
    [b"null", b"", b"http://evil.com", b"http://localhost.evil.com", b"file://", b"chrome-extension://abc",
     b"localhost", b"http://user@localhost", b"http://localhost/path", b"http://localhost http://evil.com", b"ftp://localhost",
     b"http://", b"http://a b", b"https://app.example.com:444", b"http://app.example.com",
     b"https://pages.example.com", b"https://evilpages.example.com", b"http://dev.example.com"],
)  # fmt: skip
def test_error_403_for_other_origins_mentions_the_setting(value: bytes) -> None:
    for policy in (LOCAL, PUBLIC):
        for method in ("GET", "POST", "DELETE"):
            fields = {b"host": b"127.0.0.1:8000", b"origin": value}
            refusal = check(policy, method, list(fields.items()))
            assert refusal is not None
            assert refusal.status == 403
            assert b"allowed_origins" in refusal.body


@for_each(
    "value", [b"https://app.example.com", b"https://APP.example.com:443", b"https://a.pages.example.com",
              b"http://dev.example.com:3000"],
)  # fmt: skip
def test_listed_origins_are_allowed(value: bytes) -> None:
    assert origin(value, policy=PUBLIC) == 200


@for_each(("peer", "expected"), [("127.0.0.1", None), ("::1", None), ("10.0.0.5", 403), ("testclient", 403), ("", 403)])
def test_peer_address_decides_on_loopback_origins_without_a_known_bind(peer: str, expected: int | None) -> None:
    unknown = HostPolicy(loopback_bind=None)
    fields = {b"host": b"127.0.0.1", b"origin": b"http://localhost:3000"}
    refusal = check(unknown, "POST", list(fields.items()), peer)
    assert (None if refusal is None else refusal.status) == expected


def test_wildcard_origin_excludes_the_opaque_origin() -> None:
    anyone = HostPolicy(allowed_origins=["*"], loopback_bind=False)
    assert origin(b"https://evil.com", policy=anyone) == 200
    assert origin(b"null", policy=anyone) == 403
    assert origin(b"null", policy=HostPolicy(allowed_origins=["null"], loopback_bind=False)) == 200


def test_own_origin_is_allowed_with_an_allowed_host() -> None:
    assert origin(b"https://mcp.example.com", b"mcp.example.com", PUBLIC) == 200
    assert origin(b"http://mcp.example.com:8000", b"mcp.example.com:8000", PUBLIC) == 200
    assert origin(b"http://192.168.1.5:8000", b"192.168.1.5:8000", PUBLIC) == 200
    assert origin(b"http://mcp.example.com:8001", b"mcp.example.com:8000", PUBLIC) == 403
    assert origin(b"http://evil.com", b"evil.com") == 421


@for_each(
    ("page", "site", "expected"),
    [
        (b"https://mcp.example.com:8443", b"same-origin", 200),
        (b"https://mcp.example.com:8443", b"same-site", 403),
        (b"https://mcp.example.com:8443", b"none", 403),
        (b"https://evil.example:8443", b"same-origin", 403),
        (b"null", b"same-origin", 403),
    ],
)
def test_own_origin_is_allowed_if_a_proxy_drops_the_port(page: bytes, site: bytes, expected: int) -> None:
    fields = ((b"host", b"mcp.example.com"), (b"origin", page), (b"sec-fetch-site", site))
    assert status(PUBLIC, *fields) == expected


def test_invalid_origin_settings_raise() -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        HostPolicy(allowed_origins=["app.example.com"])


@for_each("entry", ["https://a.example", "a.example/", "*a.example", "a.example:*", "größe.example"])
def test_host_settings_that_never_match_raise(entry: str) -> None:
    with pytest.raises(ValueError, match=r"allowed_hosts: .* isn't a host name"):
        HostPolicy([entry])


def test_empty_entries_are_ignored() -> None:
    nobody = HostPolicy([""], [""], loopback_bind=False)
    assert host(b"evil.com", nobody) == 421
    assert origin(b"http://evil.com", policy=nobody) == 403


@for_each(("method", "expected"), [("POST", 403), ("DELETE", 403), ("GET", 200), ("OPTIONS", 200)])
def test_cross_site_requests_without_origin_cannot_change_state(method: str, expected: int) -> None:
    fields = [(b"host", b"localhost"), (b"sec-fetch-site", b"cross-site")]
    assert status(LOCAL, *fields, method=method) == expected
    assert status(LOCAL, *fields, (b"origin", b"http://localhost:1"), method=method) == 200
    assert status(LOCAL, (b"host", b"localhost"), (b"sec-fetch-site", b"same-origin"), method=method) == 200


def test_cors_headers_contain_origin_and_exposed_headers() -> None:
    refused, head = LOCAL.screen(_options((b"origin", b"http://localhost:3000 "), method="POST"))
    assert refused is None
    assert head.startswith(b"access-control-allow-origin: http://localhost:3000\r\n")
    assert b"mcp-session-id, www-authenticate, retry-after, ratelimit, ratelimit-policy, link\r\n" in head
    assert b"vary: origin\r\n" in head


def _options(*fields: tuple[bytes, bytes], method: str = "OPTIONS") -> HttpRequest:
    raw = [(b"host", b"localhost"), *fields]
    return HttpRequest(method, "/mcp", raw, dict(raw))


def test_preflight_reflects_requested_headers() -> None:
    asks = (b"access-control-request-method", b"POST")
    reply, _ = LOCAL.screen(
        _options((b"origin", b"http://localhost"), asks, (b"access-control-request-headers", b"mcp-param-x, accept"))
    )
    assert reply is not None
    assert (reply.status, reply.body) == (204, b"")
    assert b"access-control-allow-headers: mcp-param-x, accept\r\n" in reply.head
    assert b"access-control-allow-methods: POST, GET, DELETE, OPTIONS\r\n" in reply.head


@for_each("wanted", [b"", b"x\r\nset-cookie: a=b", b"a;b", b"x" * 3000])
def test_preflight_without_a_list_gets_the_protocol_headers(wanted: bytes) -> None:
    reply, _ = LOCAL.screen(
        _options(
            (b"origin", b"http://localhost"),
            (b"access-control-request-method", b"POST"),
            (b"access-control-request-headers", wanted),
        )
    )
    assert reply is not None
    assert b"mcp-session-id, last-event-id\r\n" in reply.head
    assert b"set-cookie" not in reply.head


def test_plain_options_requests_are_not_preflights() -> None:
    asks, comes = (b"access-control-request-method", b"POST"), (b"origin", b"http://localhost")
    assert LOCAL.screen(_options(comes))[0] is None
    assert LOCAL.screen(_options(asks))[0] is None
    assert LOCAL.screen(_options(comes, asks, method="POST"))[0] is None


def test_authorities_are_parsed() -> None:
    parsed = parse_authority(b"LocalHost:80")
    assert parsed is not None
    assert (parsed.name, parsed.port, parsed.address, parsed.loopback) == ("localhost", b"80", None, True)
    remote = parse_authority(b"[2001:DB8::1]")
    assert remote is not None
    assert (remote.name, str(remote.address), remote.loopback) == ("2001:db8::1", "2001:db8::1", False)


def test_host_cache_cannot_be_filled_with_fake_addresses() -> None:
    policy = HostPolicy(["mcp.example.com"])
    for number in range(5000):
        assert host(b"10.%d.%d.1:%d" % (number >> 8, number & 255, number + 1), policy) == 200
        assert len(policy.good) <= 1024
    assert host(b"mcp.example.com", policy) == 200
    assert b"mcp.example.com" in policy.good


def test_wildcard_without_cors_allows_no_cross_site_page() -> None:
    policy = HostPolicy(("*",), ("*", "https://shop.example"), loopback_bind=False, cors=False)

    def admitted(origin: bytes, method: str = "POST", kind: bytes | None = b"application/json") -> bool:
        headers = {b"host": b"api.example", b"origin": origin}
        if kind is not None:
            headers[b"content-type"] = kind
        return check(policy, method, list(headers.items())) is None

    assert admitted(b"https://evil.example")
    assert admitted(b"https://evil.example", "GET", None)
    for kind in (None, b"", b"text/plain; charset=utf-8", b"application/x-www-form-urlencoded", b"Multipart/Form-Data"):
        assert not admitted(b"https://evil.example", kind=kind)
        assert admitted(b"https://shop.example", kind=kind)
        assert admitted(b"http://api.example", kind=kind)
    fields = [(b"host", b"api.example"), (b"origin", b"https://shop.example")]
    fields.append((b"access-control-request-method", b"POST"))
    assert policy.screen(HttpRequest("OPTIONS", "/mcp", fields, dict(fields))) == (None, b"")


def test_test_client_host_name_is_rejected_with_a_fix() -> None:
    refusal = check(LOCAL, "POST", [(b"host", b"testserver")])
    assert refusal is not None
    assert refusal.status == 421
    assert b"TestClient(app, base_url='http://localhost')" in refusal.body


def test_host_values_with_many_spaces_are_not_kept() -> None:
    policy = HostPolicy()
    with measured() as growth:
        for number in range(200):
            host = b"10.0.0.%d" % number + 30_000 * b" "
            assert check(policy, "GET", [(b"host", host)]) is None
    assert growth.bytes < 3 * MIB  # the newest 64 of them, parsed
