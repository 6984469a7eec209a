import pytest

from cases import for_each
from http_messages import header_lines
from millstream._http.message import refusal


def test_rejections_include_a_challenge_or_retry_time() -> None:
    """RFC 9110 §11.6.1 and §10.2.3."""
    reply = refusal(401, "Sign in.", www_authenticate='Bearer resource_metadata="https://a/b"', retry_after="5")
    assert (reply.status, reply.body) == (401, b"Sign in.\n")
    challenge = b'www-authenticate: Bearer resource_metadata="https://a/b"\r\n'
    assert reply.head == b"content-type: text/plain; charset=utf-8\r\n" + challenge + b"retry-after: 5\r\n"


@for_each("value", ["a\r\nset-cookie: b", "a\nb", "a\x00b", "a\x7fb", "\u2028", "\u0416"])
def test_header_values_with_line_ends_raise(value: str) -> None:
    """RFC 9110 §5.5."""
    with pytest.raises(ValueError, match=r"header|encode"):
        header_lines(www_authenticate=value)
