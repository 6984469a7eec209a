"""Refusals in plain text: what they say, and which headers they carry."""

import pytest

from cases import for_each
from millstream._http.message import TEXT_HEAD, header_lines, refusal


def test_a_refusal_carries_a_challenge_or_the_time_to_come_back() -> None:
    """RFC 9110 §11.6.1 and §10.2.3."""
    reply = refusal(401, "Sign in.", www_authenticate='Bearer resource_metadata="https://a/b"', retry_after="5")
    assert (reply.status, reply.body) == (401, b"Sign in.\n")
    challenge = b'www-authenticate: Bearer resource_metadata="https://a/b"\r\n'
    assert reply.head == TEXT_HEAD + challenge + b"retry-after: 5\r\n"


@for_each("value", ["a\r\nset-cookie: b", "a\nb", "a\x00b", "a\x7fb", "\u2028", "\u0416"])
def test_a_value_that_would_end_its_header_line_is_an_error(value: str) -> None:
    """RFC 9110 §5.5: no CR, LF or NUL, whoever chose the text."""
    with pytest.raises(ValueError, match=r"header|encode"):
        header_lines(www_authenticate=value)
