"""URIs in normal form, compared with RFC 3986 and with the URLs of clients that normalize what they read."""

import random
from contextlib import suppress
from itertools import count
from urllib.parse import urlsplit

import pytest
from pydantic import AnyUrl, ValidationError

from cases import for_each
from cpu import DEAR_TEXT, check_linear, repeat
from millstream._protocol.uri import check_uri, encode_host, join_url, normalize_uri, split_url
from property_settings import NIGHTLY

EQUIVALENT = {
    "http://example.com": ["HTTP://Example.COM:80/", "http://example.com:/", "http://%65xample.com/"],
    "https://example.com/~a?q=%C3%A4": ["https://example.com:443/%7Ea?q=ä", "https://example.com/%7ea?q=%c3%a4"],
    "memo://a/x": ["memo://a/../x", "memo://A/./b/../x", "memo://a/%2E%2e/x"],
    "file:///tmp/a%20b": ["file:/tmp/a%20b", "FILE://localhost/tmp/a b", "file:///tmp/./a%20b", "file:////tmp/a%20b"],
    "http://xn--bcher-kva.example/": ["http://bücher.example", "http://b%C3%BCcher.example/"],
    "static://caf%C3%A9": ["static://café", "Static://caf%c3%a9"],
}
DIFFERENT = [
    ("a://b/c%2Fd", "a://b/c/d"),
    ("a://b/C", "a://b/c"),
    ("a://b/x?", "a://b/x"),
    ("a://b/x", "a://b/x/"),
    ("a://b/%2525", "a://b/%25"),
    ("urn:a:B", "urn:a:b"),
    ("a://b:80/", "a://b/"),
    ("a://b/\u00e9", "a://b/e\u0301"),
]
PIECES = [
    "a",
    "B",
    "/",
    "//",
    "..",
    ".",
    "%41",
    "%7e",
    "%2F",
    "%2f",
    "é",
    "ä",
    "#",
    "=",
    "&",
    "'",
    "@",
    ":80",
    "!",
    "*",
    "~",
    "+",
    "%C3%A9",
    "(",
    ";",
    ",",
    "$",
    "?",
]
STARTS = [
    "http://host",
    "https://Host:443",
    "Shop://items",
    "Shop://Items/",
    "memo://a/b",
    "file:///x",
    "file:/x",
    "urn:",
    "a+b:c",
    "ws://h:80/",
]


def test_equivalent_uris_have_one_normal_form() -> None:
    for uri, others in EQUIVALENT.items():
        assert {normalize_uri(each) for each in others} == {normalize_uri(uri)}, uri


def test_uris_that_may_name_different_resources_stay_different() -> None:
    for one, other in DIFFERENT:
        assert normalize_uri(one) != normalize_uri(other), (one, other)


def test_text_that_is_not_a_uri_is_left_unchanged() -> None:
    for text in ("", "notes/7", "no scheme:", "%zz", "\ud800:x"):
        assert normalize_uri(text) == text


def test_uri_normalized_by_another_library_has_the_same_normal_form() -> None:
    draw = random.Random(3)
    compared = 0
    for _ in range(20_000 if NIGHTLY else 2_000):
        uri = draw.choice(STARTS) + "/" * draw.randint(0, 1) + "".join(draw.choices(PIECES, k=draw.randint(0, 5)))
        try:
            check_uri("URI", uri)
            theirs = str(AnyUrl(uri))
        except (ValueError, ValidationError):
            continue
        if any(each in uri.partition("//")[2].partition("/")[0] for each in "@!*~+(;,$.=&%'"):
            continue  # hosts that no one has
        compared += 1
        assert normalize_uri(theirs) == normalize_uri(uri)
        assert normalize_uri(normalize_uri(uri)) == normalize_uri(uri)
    assert compared > 500


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("notes/7", "must start with a scheme, as in 'shop://notes/7'"),
        ("My report.txt", "must start with a scheme, as in 'shop://My%20report.txt'"),
        ("static://with space", "can't contain ' ': write '%20' for it"),
        ("static://100%", "can't contain '%': write '%25' for it"),
        ("static://a\\b", "can't contain"),
        ("static://a\x85", "can't contain"),
        ("http:///x", "must have a host after '//'"),
        ("file:x", "must start with 'file:///'"),
        ("memo://host:port/", "must be a host, or a host and a port"),
    ],
)
def test_text_that_is_not_a_uri_is_rejected_with_a_fix(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"^resource '") as refused:
        check_uri("resource", uri)
    assert says in str(refused.value)
    assert repr(uri) in str(refused.value)


@for_each("piece", ["\u4e00\u4e01\u4e02", "%C3%A4", "%C3%A4.", "a", ".", "@:", "%"])
def test_normalizing_a_host_takes_linear_time(piece: str) -> None:
    def normalize(pieces: int) -> None:
        letters = "".join(map(chr, range(0x4E00, 0x4E00 + pieces)))
        normalize_uri(f"http://{letters if piece[0] > chr(0x7F) else piece * pieces}/")

    check_linear(normalize, 500)


def test_every_spelling_of_a_dns_name_has_the_same_normal_form() -> None:
    for spelled in ("http://bücher.example", "http://b%C3%BCcher.example", "http://B%c3%bccher%E3%80%82example"):
        assert normalize_uri(spelled) == "http://xn--bcher-kva.example/"
    assert normalize_uri("http://b%C3%BCcher.example./") == "http://xn--bcher-kva.example./"


@pytest.mark.parametrize("unit", DEAR_TEXT.values(), ids=DEAR_TEXT)
def test_urls_of_peers_are_split_in_linear_time(unit: str) -> None:
    numbers = count()  # `urlsplit` remembers URLs

    def split(size: int) -> None:
        url = f"https://{next(numbers)}{repeat(unit, size)}"
        for run in (split_url, lambda url: join_url(url, "/y"), lambda url: join_url("https://x/", url), encode_host):
            with suppress(ValueError):
                run(url)

    check_linear(split, 5_000)


def test_hosts_that_no_resolver_knows_are_refused_before_they_are_encoded() -> None:
    assert encode_host("bücher.example") == "xn--bcher-kva.example"
    assert encode_host("::1") == "::1"
    for host in ("ü" * 64, "ü." * 127, f"{'ü' * 254}"):
        with pytest.raises(ValueError, match="DNS"):
            encode_host(host)


def test_urls_of_peers_are_split_as_the_standard_library_does() -> None:
    for url in ("https://bücher.example/ä?b#c", "/x", "", "//x/y", "https://x/" + "e\u0301" * 99):
        assert split_url(url) == urlsplit(url)
