"""Spellings of URIs that have the same key, or none."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream import Client, Server
from millstream._gateway.rules.patterns import uri_key
from millstream._gateway.rules.policy import Policy
from millstream.client import ServerError
from millstream.gateway import ResourcePolicy, UpstreamPolicy
from patience import WAIT

DENIED = {
    "file:///private/x": "file:///private/*",
    "file:///c:/Private/x": "file:///c:/private/*",
    "https://private.example/x": "https://private.example/*",
    "http://127.0.0.1/x": "http://127.0.0.1/*",
    "book://private/x": "book://private/*",
    "shop://items/secret?id=1": "shop://items/secret*",
    "secret:plan": "secret:*",
}
Change = Callable[[str, int], str]


def _at(change: Callable[[str], str]) -> Change:
    return lambda uri, at: uri[:at] + change(uri[at : at + 1]) + uri[at + 1 :]


def _after_host(text: str) -> Change:
    def change(uri: str, at: int) -> str:
        start = uri.find("/", uri.find("://") + 3)
        return uri if start < 0 else f"{uri[:start]}{text}{uri[start:]}"

    return change


CHANGES: dict[str, Change] = {
    "encoded": _at(lambda letter: f"%{ord(letter):02X}" if letter.isascii() and letter else letter),
    "encoded twice": _at(lambda letter: f"%25{ord(letter):02X}" if letter.isascii() and letter else letter),
    "wide": _at(lambda letter: chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter),
    "soft hyphen": _at(lambda letter: f"\u00ad{letter}"),
    "encoded soft hyphen": _at(lambda letter: f"%C2%AD{letter}"),
    "null": lambda uri, at: f"{uri}%00{at}",
    "line break": _at(lambda letter: f"\n{letter}"),
    "fragment": lambda uri, at: f"{uri}#{at}",
    "upper case of the scheme": lambda uri, at: uri.partition(":")[0].upper() + uri[uri.find(":") :],
    "localhost": lambda uri, at: uri.replace("file:///", "file://localhost/", 1),
    "one slash": lambda uri, at: uri.replace("file:///", "file:/", 1),
    "user": lambda uri, at: uri.replace("://", "://u@", 1) if not uri.startswith("file:") else uri,
    "backslashes": lambda uri, at: uri.replace("/", "\\"),
    "dots": _after_host("/a/.."),
    "encoded dots": _after_host("/a/%2e%2E"),
    "encoded slash and dots": _after_host("/a%2f.."),
    "empty segment": _after_host("/"),
    "parameter": _after_host(";a"),
}


@given(
    st.sampled_from(list(DENIED)),
    st.lists(st.tuples(st.sampled_from(list(CHANGES)), st.integers(0, 24)), max_size=4),
)
def test_spellings_of_denied_uris_have_no_key_or_are_denied(uri: str, changes: list[tuple[str, int]]) -> None:
    pattern, spelled = DENIED[uri], uri
    for name, at in changes:
        spelled = CHANGES[name](spelled, at)
    assert Policy(UpstreamPolicy(deny=(pattern,))).rules_of(spelled) is None, spelled


@pytest.mark.parametrize(
    ("pattern", "uri"),
    [
        ("book://private/*", "book:/;a/private/x"),
        ("file:///private/*", "file://%2Fshop//private/x"),
        ("file:///private/*", "file:/%2Flocalhost/private/x"),
        ("file:///private/*", "file://127.0.0.1#y/private/x"),
        ("file:///?:/secret.txt", "file://C:/SECRET.txt"),
        ("https://private.example/*", "https://shelf.e?x@private.example/x"),
        ("https://private.example/*", "https://\u1d56rivate.example/x"),
        ("note://x/secret*", "note://%78/secret/.."),
        ("note://x/secret*", "note://x/a\uff0f../secret"),
        ("note://x/a%2Fb*", "note://x/a%252Fb"),
    ],
)
def test_uris_that_decode_to_another_place_are_not_offered(pattern: str, uri: str) -> None:
    assert Policy(UpstreamPolicy(deny=(pattern,))).rules_of(uri) is None


def test_rules_leave_other_uris_as_they_are() -> None:
    policy = Policy(
        UpstreamPolicy(
            deny=("note://x/*%2f*", "shop://items;id=1", "shop://items?id=A"),
            resources={"note://x/%2A": ResourcePolicy()},
        )
    )
    for uri in (
        "note://x/a/b",
        "shop://items",
        "shop://items;id=2",
        "shop://items?id=a",
        "note://x/100%25",
        "user://A@b/x",
    ):
        assert policy.rules_of(uri) is not None, uri
    for uri in ("note://x/a%2fb", "note://x/a%2Fb", "shop://items;id=1", "shop://items?id=%41"):
        assert policy.rules_of(uri) is None, uri


def test_key_does_not_depend_on_how_an_upstream_writes_a_uri() -> None:
    for uri, *others in (
        ("https://b\u00fccher.example/\u00e4", "HTTPS://xn--bcher-kva.example:443/%c3%a4"),
        ("file:///a/b", "file://localhost/a/./b", "file:/a//b"),
        ("note://x/\uff41", "note://X/%61"),
    ):
        assert {uri_key(each, is_listed=True) for each in others} == {uri_key(uri, is_listed=True)} != {""}


async def test_listed_uri_without_a_key_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    notes, front = Server("notes"), Server("front")
    odd = "note://x/a%2F..%2Fb"
    for uri in (odd, "note://x/usual"):
        notes.resource(uri, name="note")(lambda: "read")
    front.upstream("n", notes, prefix="", policy=UpstreamPolicy(deny=("note://y/*",)), start_timeout=WAIT)
    async with Client(front) as client:
        assert [each.uri for each in await client.resources()] == ["note://x/usual"]
        with pytest.raises(ServerError):
            await client.read(odd)
    assert f"skipped '{odd}', because programs read this URI differently" in caplog.text


async def test_uris_are_sent_as_they_came() -> None:
    notes, front, read = Server("notes"), Server("front"), list[str]()

    @notes.resource("note://{+rest}", name="note")
    def note(rest: str) -> str:
        read.append(rest)
        return rest

    front.upstream("n", notes, prefix="", policy=UpstreamPolicy(deny=("note://y/*",)), start_timeout=WAIT)
    sent = ["Alice/x", "x/\u00e4", "x/a//b", "x/a;b"]
    async with Client(front) as client:
        for rest in sent:
            await client.read(f"note://{rest}")
    assert read == sent
