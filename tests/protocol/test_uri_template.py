"""URI templates: RFC 6570 expansion, and matching by the rules of the module's docstring."""

import re
from time import process_time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cases import for_each
from cpu import check_linear
from millstream._protocol.uri_template import UriTemplate, normalize_template
from strategies import path_values, texts

RFC_VALUES = {
    "count": "one,two,three", "dub": "me/too", "hello": "Hello World!", "half": "50%", "var": "value", "who": "fred",
    "base": "http://example.com/home/", "path": "/foo/bar", "v": "6", "x": "1024", "y": "768", "empty": "",
}  # fmt: skip

# RFC 6570 §1.2 and §3.2, the examples of levels 1 to 3.
RFC_EXAMPLES = [
    ("{var}", "value"),
    ("{hello}", "Hello%20World%21"),
    ("{+var}", "value"),
    ("{+hello}", "Hello%20World!"),
    ("{+path}/here", "/foo/bar/here"),
    ("here?ref={+path}", "here?ref=/foo/bar"),
    ("X{#var}", "X#value"),
    ("X{#hello}", "X#Hello%20World!"),
    ("map?{x,y}", "map?1024,768"),
    ("{x,hello,y}", "1024,Hello%20World%21,768"),
    ("{+x,hello,y}", "1024,Hello%20World!,768"),
    ("{+path,x}/here", "/foo/bar,1024/here"),
    ("{#x,hello,y}", "#1024,Hello%20World!,768"),
    ("{#path,x}/here", "#/foo/bar,1024/here"),
    ("X{.var}", "X.value"),
    ("X{.x,y}", "X.1024.768"),
    ("{/var}", "/value"),
    ("{/var,x}/here", "/value/1024/here"),
    ("{;x,y}", ";x=1024;y=768"),
    ("{;x,y,empty}", ";x=1024;y=768;empty"),
    ("{?x,y}", "?x=1024&y=768"),
    ("{?x,y,empty}", "?x=1024&y=768&empty="),
    ("?fixed=yes{&x}", "?fixed=yes&x=1024"),
    ("{&x,y,empty}", "&x=1024&y=768&empty="),
    ("O{empty}X", "OX"),
    ("O{undef}X", "OX"),
    ("{x,y}", "1024,768"),
    ("?{x,empty}", "?1024,"),
    ("?{x,undef}", "?1024"),
    ("?{undef,y}", "?768"),
    ("{half}", "50%25"),
    ("{base}index", "http%3A%2F%2Fexample.com%2Fhome%2Findex"),
    ("{+half}", "50%25"),
    ("{+base}index", "http://example.com/home/index"),
    ("O{+empty}X", "OX"),
    ("O{+undef}X", "OX"),
    ("up{+path}{var}/here", "up/foo/barvalue/here"),
    ("{#half}", "#50%25"),
    ("foo{#empty}", "foo#"),
    ("foo{#undef}", "foo"),
    ("{.who,who}", ".fred.fred"),
    ("{.half,who}", ".50%25.fred"),
    ("X{.empty}", "X."),
    ("X{.undef}", "X"),
    ("{/who,who}", "/fred/fred"),
    ("{/half,who}", "/50%25/fred"),
    ("{/who,dub}", "/fred/me%2Ftoo"),
    ("{/var,empty}", "/value/"),
    ("{/var,undef}", "/value"),
    ("{;who}", ";who=fred"),
    ("{;half}", ";half=50%25"),
    ("{;empty}", ";empty"),
    ("{;v,empty,who}", ";v=6;empty;who=fred"),
    ("{;v,undef,who}", ";v=6;who=fred"),
    ("{?who}", "?who=fred"),
    ("{?x,y,undef}", "?x=1024&y=768"),
    ("{&who}", "&who=fred"),
    ("?a=%20{&half}", "?a=%20&half=50%25"),
    ("", ""),
    ("ä{x}", "%C3%A41024"),
]


def match(template: str, uri: str) -> dict[str, str] | None:
    return UriTemplate(template).match(uri)


@for_each(("template", "uri"), RFC_EXAMPLES)
def test_expansion_follows_the_rfc(template: str, uri: str) -> None:
    """RFC 6570 §1.2 and §3.2."""
    assert UriTemplate(template).expand(RFC_VALUES) == uri


@for_each(("value", "text"), [("a%20b", "a%20b"), ("%", "%25"), ("%2", "%252"), ("%zz%2F", "%25zz%2F")])
def test_reserved_expansion_keeps_percent_encoded_triplets(value: str, text: str) -> None:
    """RFC 6570 §3.2.3."""
    assert UriTemplate("{+x}").expand({"x": value}) == text


def test_variables_are_listed_once_in_order() -> None:
    """RFC 6570 §2.3."""
    template = UriTemplate("a{x}/{+b.c,x}{?%41_9}")
    assert template.variables == ("x", "b.c", "%41_9")
    assert repr(template) == "UriTemplate('a{x}/{+b.c,x}{?%41_9}')"


@for_each(
    ("template", "position"),
    [("{", 0), ("a{x", 1), ("a{}", 2), ("{x,}", 3), ("{,x}", 1), ("{+}", 2), ("{x}}", 3), ("a b", 1), ("a\n", 1),
     ("a%2", 1), ("%zz", 0), ("a%{x}", 1), ("a|b", 1), ('"', 0), ("{=x}", 1), ("{!x}", 1), ("{|x}", 1), ("{a b}", 2),
     ("{x,y*}", 4), ("{+x*}", 3), ("{*}", 1), ("{x**}", 2), ("{x:3}", 2),
     ("{a,/b}", 3), ("{.a.}", 3), ("{a..b}", 3), ("{+.a}", 2), ("{%4}", 1), ("{ä}", 1),
     ("{a{b}", 0), ("{a-b}", 2)],
)  # fmt: skip
def test_invalid_templates_are_rejected_with_the_position(template: str, position: int) -> None:
    """RFC 6570 §2."""
    with pytest.raises(ValueError, match=f"at position {position}: "):
        UriTemplate(template)


def test_invalid_variable_names_are_rejected_with_the_reason() -> None:
    for template, reason in (
        ("{a-b}", r"position 2: '-' isn't allowed\."),
        ("{x:3}", r"modifier ':' \(level 4\) isn't"),
    ):
        with pytest.raises(ValueError, match=reason):
            UriTemplate(template)


# matching


@for_each(
    ("template", "uri", "values"),
    [
        ("test://template/{id}/data", "test://template/123/data", {"id": "123"}),
        ("test://static", "test://static", {}),
        ("", "", {}),
        ("book://{isbn}", "book://0-19:852@663,6 a+b", {"isbn": "0-19:852@663,6 a+b"}),
        ("book://{t}", "book://%C3%A9%20x", {"t": "é x"}),
        ("book://{t}", "book://é", {"t": "é"}),
        ("é/{t}", "é/x", {"t": "x"}),
        ("é/{t}", "%C3%A9/x", {"t": "x"}),
        ("f:///{+path}", "f:///a/b%2Fc?d#e", {"path": "a/b/c?d#e"}),
        ("f://{path*}", "f://a/b%20c/d.md", {"path": "a/b c/d.md"}),
        ("f://{path*}/raw{?q}", "f://a/b/raw?q=1", {"path": "a/b", "q": "1"}),
        ("f://{+path}/{name}", "f://a/b/c", {"path": "a/b", "name": "c"}),
        ("f://{name}-{+rest}", "f://d-a/b-c", {"name": "d", "rest": "a/b-c"}),
        ("f://{+a}/{b}/{+c}", "f://1/2/3/4", {"a": "1/2", "b": "3", "c": "4"}),
        ("f://{+path}{.ext}", "f://a.b/c.tar.gz", {"path": "a.b/c", "ext": "tar.gz"}),
        ("f://{+path}{?q}", "f://a/b?q=1", {"path": "a/b", "q": "1"}),
        ("f://{+path}{#f}", "f://a/b#c/d", {"path": "a/b", "f": "c/d"}),
        ("{a}{b}", "é😀", {"a": "é", "b": "😀"}),
        ("{a}{b}", "xy%41", {"a": "xy", "b": "A"}),
        ("{a,b}", "1,2,3", {"a": "1", "b": "2,3"}),
        ("{a,b}", "1", {"a": "1"}),
        ("{a,b}", ",", {"a": "", "b": ""}),
        ("x{.a,b}", "x.1.2.3", {"a": "1", "b": "2.3"}),
        ("x{/a,b}", "x/1", {"a": "1"}),
        ("x{/a,b}/edit", "x/1/edit", {"a": "1"}),
        ("x{/a,b}/edit", "x/1/2/edit", {"a": "1", "b": "2"}),
        ("x{/a,b}/edit", "x/edit", {}),
        ("x{/a}", "x/", {"a": ""}),
        ("x{/a}", "x", {}),
        ("x{;a,b}", "x;b=2;a", {"a": "", "b": "2"}),
        ("{z}{;a,b}", "v;a=1;b=2", {"z": "v", "a": "1", "b": "2"}),
        ("x{?a,b}", "x?b=2&a=1", {"a": "1", "b": "2"}),
        ("x{?a,b}", "x?b=2", {"b": "2"}),
        ("x{?a,b}", "x", {}),
        ("x{?a}", "x?", {}),
        ("x{?a}", "x?utm=7&a=b=c", {"a": "b=c"}),
        ("x{?a}{#f}", "x?a=1#", {"a": "1", "f": ""}),
        ("x{?a}{&b}", "x?a=1&b=2", {"a": "1", "b": "2"}),
        ("x?fixed=1{&a}", "x?fixed=1&a=2", {"a": "2"}),
        ("{x}/{x}", "a/%61", {"x": "a"}),
        ("u:{+u}", "u:...", {"u": "..."}),
        ("u:{u}", "u:.x..", {"u": ".x.."}),
        ("{x}", "%252F", {"x": "%2F"}),
    ],
)
def test_matching_returns_the_values(template: str, uri: str, values: dict[str, str]) -> None:
    assert match(template, uri) == values
    assert list(match(template, uri) or ()) == [name for name in UriTemplate(template).variables if name in values]


@for_each(
    ("template", "uri"),
    [
        ("test://static", "test://static/"),
        ("test://static", "Test://static"),
        ("", "x"),
        ("book://{isbn}", "book://"),
        ("book://{isbn}", "book://a/b"),
        ("book://{isbn}", "book://a?b"),
        ("book://{isbn}", "book://a#b"),
        ("book://{isbn}/x", "book://a/y"),
        ("book://{isbn}/x", "book://a/x/"),
        ("f://{+path}", "f://"),
        ("f://{path*}", "f://"),
        ("f://{path*}", "f:///etc/passwd"),
        ("f://{path*}", "f://%2Fetc"),
        ("f://{path*}", "f://a//b"),
        ("f://{path*}", "f://a/"),
        ("f://{path*}", "f://a?b"),
        ("f://{path*}", "f://a%00b"),
        ("{a}{b}", "x"),
        ("{a}{b}", "%41"),
        ("{a}1", "x%41"),
        ("x{/a}", "x/1/2"),
        ("x{.a}", "xa"),
        ("x{?a}", "x?a=1&a=1"),
        ("x{?a}", "x&a=1"),
        ("{x}/{x}", "a/b"),
        ("{x}", "\ud800"),
    ],
)
def test_uris_that_the_template_cannot_produce_do_not_match(template: str, uri: str) -> None:
    assert match(template, uri) is None


@for_each("value", ["%", "%4", "%zz", "a%2", "%ff", "%C3", "%ED%A0%80", "a%00b"])
def test_invalid_percent_encoding_utf8_and_nul_do_not_match(value: str) -> None:
    """RFC 3986 §2.1."""
    for template in ("{x}", "{+x}", "{?x}"):
        assert match(template, value if "?" not in template else f"?x={value}") is None


@for_each("value", [".", "..", "%2e", "%2E%2e", ".%2e", "a%2Fb", "%2fetc", "..%2f", "..%5C", "a\\b"])
@for_each("template", ["{x}", "{/x}", "{.x}", "{;x}", "{?x}", "{&x}"])
def test_variables_never_contain_slashes_or_dot_segments(template: str, value: str) -> None:
    """MCP 2025-11-25, server/resources."""
    lead = template[1].replace("x", "")
    uri = f"{lead}x={value}" if lead in tuple(";?&") else lead + value
    assert match(template, uri) is None


@for_each("value", ["..", "../a", "a/..", "a/../b", "a/%2e%2e/b", "a%2F..%2Fb", "a\\..\\b", "./a"])
@for_each("template", ["{+x}", "{#x}"])
def test_reserved_variables_never_contain_dot_segments(template: str, value: str) -> None:
    """MCP 2025-11-25, server/resources."""
    lead = template[1].replace("+", "")
    assert match(template, lead + "a/b//c") == {"x": "a/b//c"}
    assert match(template, lead + value) is None
    assert match("{x*}", value) is None


def test_path_variables_expand_with_slashes() -> None:
    assert UriTemplate("f://{path*}").expand({"path": "a b/c?d"}) == "f://a%20b/c%3Fd"


# properties

TEMPLATES = [
    "book://{a}",
    "book://{a}/page/{b}",
    "x{/a,b}",
    "x{;a,b}",
    "x{?a,b}",
    "x://{a}{?b}",
    "x?y=1{&a,b}",
    "x{#a}",
    "{a},{b}",
    "{a,b}",
    "{a}/{+b}",
]


@given(st.sampled_from(TEMPLATES), path_values, path_values)
def test_matching_undoes_expansion(template: str, a: str, b: str) -> None:
    assume("%" not in a + b if "#" in template or "+" in template else True)
    compiled = UriTemplate(template)
    values = {name: value for name, value in (("a", a), ("b", b)) if name in compiled.variables}
    assert compiled.match(compiled.expand(values)) == values


literals = st.sampled_from(["a", "/", "-", ".", "?", "#", "%41", "x=1&", ","])
names = st.lists(st.sampled_from("xyz"), min_size=1, max_size=3).map(",".join)
expressions = st.tuples(st.sampled_from(["", *"+#./;?&"]), names).map(lambda pair: "{" + "".join(pair) + "}")
templates = st.lists(literals | expressions, max_size=6).map("".join)
tokens = st.sampled_from(["a", "/", "-", ".", "?", "#", "%41", "%2F", "%", "x=1", "&", ",", ";", "é"])
uris = st.lists(tokens).map("".join)


@given(templates, uris | texts)
def test_matching_any_uri_yields_only_safe_values(template: str, uri: str) -> None:
    compiled = UriTemplate(template)
    for text in (*(uri[:end] for end in range(len(uri))), uri, uri + "/.."):
        values = compiled.match(text)
        if values is not None:
            assert set(values) <= set(compiled.variables)
            assert all(segment not in (".", "..") for value in values.values() for segment in value.split("/"))


# What each operator takes, as a regular expression that backtracks: good for short texts only.
PLAIN, ANY = "(?:%41|[^%/?#])", "(?:%41|[^%])"
PATTERNS = {
    "": f"{PLAIN}+",
    "+": f"{ANY}+",
    "#": f"(?:#{ANY}*)?",
    ".": rf"(?:\.{PLAIN}*)?",
    "/": f"(?:/{PLAIN}*)?",
    ";": f"(?:;{PLAIN}*)?",
    "?": r"(?:\?(?:%41|[^%/#])*)?",
    "&": "(?:&(?:%41|[^%/#])*)?",
}


@given(
    st.lists(st.sampled_from([*PATTERNS, "a", "-", "a/", "%41"]), max_size=5),
    st.lists(st.sampled_from(["a", "b", "-", "/", "?", "#", ";", "&", ".", "%41", "é"]), max_size=10).map("".join),
)
def test_matcher_agrees_with_backtracking(parts: list[str], uri: str) -> None:
    template = "".join(f"{{{part}v{n}}}" if part in PATTERNS else part for n, part in enumerate(parts))
    pattern = "".join(PATTERNS.get(part, part) for part in parts)
    matches = match(template, uri) is not None
    possible = re.fullmatch(pattern, uri) is not None
    assert matches == possible or ("." in uri and not matches)


def test_a_template_matches_normal_forms() -> None:
    for template, uri, values in (
        ("Shop://Items/{number}", "shop://items/3", {"number": "3"}),
        ("live://café/{word}", "live://caf%C3%A9/x", {"word": "x"}),
        ("memo://a/../{x}", "memo://a/y", {"x": "y"}),
        ("http://Example.com:80{?q}", "http://example.com/?q=1", {"q": "1"}),
        ("users://{Name}/profile", "users://Ada/profile", {"Name": "Ada"}),
    ):
        assert UriTemplate(template).match(uri) == values, template


@for_each(
    ("template", "normal"),
    [
        ("Shop://Items/{number}", "shop://items/{number}"),
        ("http://Example.com{?q}", "http://example.com/{?q}"),
        ("urn:{x}xx{y}", "urn:{x}xx{y}"),
        ("URN:x0y{x}x1y{y}", "urn:x0y{x}x1y{y}"),
        ("HTTP://A/%7e{a}{b}", "http://a/~{a}{b}"),
        ("a://b/{x}/../c", "a://b/{x}/../c"),
        ("http://{host}/a", "http://{host}/a"),
    ],
)
def test_templates_have_the_normal_form_of_their_uris(template: str, normal: str) -> None:
    assert normalize_template(template) == normal


@for_each("piece", ["x", "{a}", "{", "{a}/", "x{a}X", "%41", "../", "x0y"])
def test_normalizing_a_template_takes_linear_time(piece: str) -> None:
    def seconds(pieces: int) -> float:
        template = "http://h/" + piece * pieces
        started = process_time()
        normalize_template(template)
        return process_time() - started

    short = min(seconds(4_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(3)) < 24 * max(short, 0.001)


def test_normalizing_a_template_with_a_long_run_takes_linear_time() -> None:
    check_linear(lambda size: normalize_template("http://h/" + "x" * size + "{a}" * (size // 4)), 4_000)
