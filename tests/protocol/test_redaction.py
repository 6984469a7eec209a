"""Credentials in texts of the peer that they were sent to, in each spelling."""

import json
from base64 import b64encode
from html import escape
from urllib.parse import quote, quote_plus

from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from cpu import check_linear, cpu_seconds
from millstream._protocol.redaction import (
    _SECRET_TEXT,
    HIDDEN,
    MAX_TEXT,
    find_argument_secrets,
    find_query_secrets,
    find_secrets,
    is_secret,
    leave_out,
    redact,
    redact_bytes,
    redact_failure,
    redact_foreign,
    redact_value,
    secret_parts,
)

SECRET = "ab/c+d\"e\\f=g h&é<Z>'😀9"


@for_each(
    "spelling",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        quote(quote(SECRET)),
        quote(SECRET, safe="").lower().replace("z", "Z"),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
        json.dumps(SECRET)[1:-1].replace("+", "\\u002B").replace("&", "\\u0026"),
        json.dumps(json.dumps(SECRET))[3:-3],
        escape(SECRET),
        escape(SECRET).replace("&#x27;", "&#39;"),
    ],
)
def test_secret_is_found_in_every_spelling(spelling: str) -> None:
    assert redact(f"bad key: {spelling}.", {SECRET}) == "bad key: [redacted]."
    assert redact_bytes(f"bad key: {spelling}.".encode(), {SECRET}) == b"bad key: [redacted]."


def test_short_secrets_only_match_whole_words_and_shorter_ones_never() -> None:
    assert redact("pin 1234, 12345, x1234", {"1234"}) == "pin [redacted], 12345, x1234"
    assert redact("abc true", {"abc", "true"}) == "abc true"


LETTERS = "OPERATOR-SECRET-4711-abcdef"


@for_each(
    "spelling",
    [
        "\u200b".join(LETTERS),
        "\u00ad".join((LETTERS[:9], LETTERS[9:])),
        "\r\n ".join((LETTERS[:11], LETTERS[11:])),
        LETTERS.encode("utf-16le").decode("latin-1"),
        "".join(f"%{ord(each):02x}" for each in LETTERS),
        quote("".join(f"%{ord(each):02X}" for each in LETTERS)),
        "".join(f"\\u{ord(each):04x}" for each in LETTERS),
        json.dumps("".join(f"\\u{ord(each):04x}" for each in LETTERS)),
        "".join(f"&#{ord(each)};" for each in LETTERS),
        escape("".join(f"&#x{ord(each):x};" for each in LETTERS)),
        "<wbr>".join(LETTERS),
        LETTERS.lower(),
        "\\r\\n".join((LETTERS[:11], LETTERS[11:])),
    ],
)
def test_nothing_is_left_of_a_text_in_which_a_reader_sees_a_long_secret(spelling: str) -> None:
    assert redact(f"The key {spelling} is wrong.", {LETTERS}) == "[redacted]"
    data = json.dumps({"of": ["app", f"The key {spelling} is wrong."]}).encode()
    assert json.loads(redact_bytes(data, {LETTERS})) == {"of": ["app", "[redacted]"]}


def test_ordinary_texts_are_not_taken_for_short_secrets() -> None:
    for text in ("The latest server is down.", "te\u00adstserver", "TESTSERVER"):
        assert redact(text, {"testserver"}) is text
    assert redact("No testserver.", {"testserver"}) == "No [redacted]."


def test_nothing_is_left_of_json_whose_values_together_are_a_long_secret() -> None:
    assert redact_bytes(json.dumps(list(LETTERS)).encode(), {LETTERS}) == b'"[redacted]"'


def test_longer_secrets_are_replaced_before_their_parts() -> None:
    assert redact("Bearer hunter22-more", {"hunter22", "hunter22-more"}) == "Bearer [redacted]"


def test_rest_of_a_long_secret_belongs_to_it_in_every_spelling() -> None:
    token = "eyJhbGciOiJFUzI1NiJ9." + "ab/cd+" * 40
    for spelling in (token, quote(token, safe=""), json.dumps(token).replace("/", "\\/")[1:-1]):
        assert redact(f'{{"key":"{spelling}","b":1}}', {token}) == '{"key":"[redacted]","b":1}'


@for_each("word", ["text", "content", "isError", "type"])
def test_words_of_the_protocol_stay_in_the_result_of_a_failed_tool(word: str) -> None:
    result = {
        "content": [
            {"type": "text", "text": f"no {word}"},
            {"type": "resource", "resource": {"uri": "a:b", "text": f"no {word}"}},
            {"type": "resource_link", "uri": f"a:no {word}", "name": "log"},
        ],
        "structuredContent": {word: [f"no {word}"]},
        "isError": True,
    }
    found = json.loads(redact_failure(json.dumps(result).encode(), {word}))
    assert found == json.loads(json.dumps(result).replace(f"no {word}", "no [redacted]"))


def test_names_of_members_of_a_failed_result_have_no_secret() -> None:
    result = {"content": [], "structuredContent": {"headers": {"k3y-of-the-operator": 1}}, "isError": True}
    found = redact_failure(json.dumps(result).encode(), {"k3y-of-the-operator"})
    assert json.loads(found)["structuredContent"] == {"headers": {"[redacted]": 1}}


def test_bytes_that_are_not_utf8_are_kept() -> None:
    assert redact_bytes(b"\xff hunter22 \xfe", {"hunter22"}) == b"\xff [redacted] \xfe"


@for_each("name", ["X-Api-Key", "Authorization", "cookie", "DB_PASS", "X-Auth", "GITHUB_TOKEN", "privateKeyPem", "JWT"])
def test_names_that_say_that_their_values_are_secret(name: str) -> None:
    assert is_secret(name)


@for_each("name", ["Accept", "X-Tenant", "HOME", "max_tokens", "LANG", "X-Request-Id", "region"])
def test_ordinary_names_are_not_secret(name: str) -> None:
    assert not is_secret(name)


def test_values_of_ordinary_names_stay_readable_unless_they_contain_a_secret() -> None:
    values = {
        "X-Tenant": "production",
        "Accept": "application/json",
        "DATABASE_URL": "postgres://shop:p%40ss-word@db/shop",
        "X-Custom": "prefix shop-4f8a1c0d",
        "X-Api-Key": "hunter22",
    }
    known = ["shop-4f8a1c0d", "unrelated-secret"]
    assert find_secrets(values, known) == {"p%40ss-word", "p@ss-word", "shop-4f8a1c0d", "hunter22"}


def test_parts_of_a_value_that_can_come_back_alone() -> None:
    basic = b64encode(b"shop:hunter22").decode()
    assert {basic, "shop:hunter22", "hunter22"} <= secret_parts(f"Basic {basic}")
    assert {"hunter22"} <= secret_parts("Bearer hunter22")
    assert {"one-secret", "other-secret"} <= secret_parts("sid=one-secret; theme=other-secret")
    key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----"
    assert "MC4CAQAwBQYDK2Vw" in secret_parts(key)


def test_secrets_in_the_arguments_of_a_command() -> None:
    command = [
        "npx",
        "remote",
        "--header",
        "Authorization: Bearer aaaa1111",
        "--token",
        "bbbb2222",
        "-e",
        "API_KEY=cc33",
    ]
    found = find_argument_secrets(
        [*command, "--api-key=dddd4444", "https://x.example/?token=eeee5555", "--no-auth", "--mode", "fast"]
    )
    assert {"aaaa1111", "bbbb2222", "cc33", "dddd4444", "eeee5555"} <= found
    assert found.isdisjoint({"fast", "npx", "remote", "--mode"})


def test_known_secrets_in_the_arguments_of_a_command() -> None:
    assert find_argument_secrets(["serve", "--config", "v1:hunter22"], ["hunter22", "another1"]) == {"hunter22"}


def test_secrets_in_the_query_of_a_url() -> None:
    assert find_query_secrets("https://x.example/mcp?api_key=hunter%2F22&page=2") == {"hunter/22"}


@for_each(
    ("unit", "secret"),
    [
        ("\\", "/abcdefgh/"),
        ("\\", "\\\\\\\\a\\\\\\\\"),
        ("%25", "////////"),
        ("a/", "a/" * 30 + "b"),
        ("&#0", "&" * 9),
        ("hunter22", "hunter22"),
        ("x", "hunter22"),
        *(
            (unit, "OPERATOR-SECRET-4711-abcdef")
            for unit in ("%41", "%2525", "<", "&#", "&#65;", "&a", "\\u0041", "\\")
        ),
    ],
)
def test_redaction_takes_linear_time(unit: str, secret: str) -> None:
    check_linear(lambda size: redact(unit * size, {secret}), 20_000)


def test_json_stays_json() -> None:
    secrets = {"1234", "12345678"}
    for text in ('{"code":-12345678,"of":[1234,{"12345678":1234}],"at":"1234"}', "[1234]"):
        found = json.loads(redact_bytes(text.encode(), secrets))
        assert found == redact_value(json.loads(text), secrets)
    assert redact_bytes(b'{"cut":1234', secrets) == b'{"cut":[redacted]'


def test_long_repeated_secrets_are_removed_at_the_speed_of_a_search() -> None:
    """A server that got a token can send it back in 16 MiB, while all other calls wait."""
    token = "t0k3n." * 20
    quoted, other = token * 20_000, "t0k4n," * 400_000
    assert redact(quoted, {token}) == "[redacted]"
    assert redact(other, {token}) is other
    assert cpu_seconds(lambda: redact(quoted, {token})) < 5 * cpu_seconds(lambda: redact(other, {token}))


def test_callers_own_words_are_found_in_each_spelling() -> None:
    secret = 'sommer"2024\u00e4'
    for said in (
        json.dumps({"a": secret}),
        json.dumps({"a": secret}, ensure_ascii=False),
        '{"a":"\\u0073ommer\\"2024\u00e4"}',
    ):
        assert leave_out(said.encode(), [secret, "other"]) == ["other"]
    assert leave_out(b'{"uri":"note://sommer%32024"}', ["sommer2024"]) == []
    assert leave_out(b'{"a":"sommer202"}', ["sommer2024"]) == ["sommer2024"]
    assert leave_out(b"", ["sommer2024"]) == ["sommer2024"]


def test_callers_own_words_are_compared_as_the_texts_that_quote_them() -> None:
    for said in (LETTERS, LETTERS.lower(), LETTERS.replace("-", " "), "".join(f"%{ord(each):x}" for each in LETTERS)):
        assert leave_out(json.dumps({"a": said}).encode(), [LETTERS, "other"]) == ["other"]
    assert leave_out(json.dumps({"a": LETTERS[:-1]}).encode(), [LETTERS]) == [LETTERS]
    check_linear(lambda size: leave_out(b'{"a":"%b"}' % (b"%41" * size), [LETTERS]), 5_000)


@given(st.from_regex(_SECRET_TEXT, alphabet=st.characters(max_codepoint=127)))
def test_every_secret_has_a_hint(text: str) -> None:
    hidden = _SECRET_TEXT.sub(
        lambda match: (match[match.lastgroup] if match.lastgroup else "") + HIDDEN, text[:MAX_TEXT]
    )
    assert redact_foreign(text[:MAX_TEXT]) == hidden
