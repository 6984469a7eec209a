from types import SimpleNamespace
from typing import Any

from cases import for_each
from cpu import check_linear
from millstream.client._endpoint import error_detail


def error_page(body: bytes) -> Any:
    return SimpleNamespace(body=body, media_type="text/html")


@for_each("piece", [b"<", b"<script", b"<svg ", b"<!--", b"<script></style>", b"<p", b"</script"])
def test_reason_on_an_error_page_is_found_in_linear_time(piece: bytes) -> None:
    check_linear(lambda size: error_detail(error_page(b"<html>" + piece * (size // len(piece)))), 2_000)


@for_each(
    ("page", "reason"),
    [
        (b"<style>p { a: b }</style><p>Busy</p>", "Busy"),
        (b"<!-- a --><p>Busy<script>if (a < b) x", "Busy"),
        (b"<p>1 < 2</p>", "1 < 2"),
    ],
)
def test_reason_from_an_error_page_is_the_visible_text(page: bytes, reason: str) -> None:
    assert error_detail(error_page(page)) == reason
