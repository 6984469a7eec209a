import pytest

from examples import use_bookshop
from processes import free_port

pytestmark = pytest.mark.server


async def test_client_program_orders_with_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert await use_bookshop.order(use_bookshop.BOOKSHOP) == use_bookshop.Receipt(2)
    assert capsys.readouterr().out == "1 of 2\n2 of 2\n"


async def test_client_program_lists_everything() -> None:
    seen = await use_bookshop.look_around(use_bookshop.BOOKSHOP)
    assert seen[:3] == ["search", "order", "book://{isbn}"]
    assert "Tolkien" in seen[3]
    assert seen[4] == "user"


async def test_client_program_reports_a_missing_server() -> None:
    said = await use_bookshop.try_to_order(f"http://127.0.0.1:{free_port()}/mcp")
    assert said.startswith("Later, perhaps. There is no server at http://127.0.0.1:")


def test_blocking_script_needs_no_await() -> None:
    assert list(use_bookshop.books(use_bookshop.BOOKSHOP)) == ["9780261103573"]
