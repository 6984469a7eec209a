import asyncio

import pytest

from examples import first_client, use_bookshop
from millstream import Server
from patience import WAIT
from processes import ROOT, free_port

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
    assert said.startswith("The call failed: There is no server at http://127.0.0.1:")


def test_blocking_script_needs_no_await() -> None:
    assert list(use_bookshop.books(use_bookshop.BOOKSHOP)) == ["9780261103573"]


async def test_first_program_lists_and_calls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "examples")
    await first_client.main()
    assert "search - Find books by author or title.\n" in capsys.readouterr().out


async def test_client_program_answers_for_a_model() -> None:
    assert "Tolkien" in (await use_bookshop.let_it_write(use_bookshop.BOOKSHOP)).text


async def test_client_program_follows_a_resource() -> None:
    mcp, texts = Server("stock"), ["7 copies"]
    mcp.resource("stock://dune", name="dune")(lambda: texts[-1])
    async with asyncio.timeout(WAIT), mcp.running():
        seen = use_bookshop.follow(mcp, "stock://dune")
        assert await anext(seen) == "7 copies"
        texts.append("6 copies")
        await mcp.resource_updated("stock://dune")
        assert await anext(seen) == "6 copies"
        await seen.aclose()


def test_client_program_signs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_CLIENT_SECRET", "made-up")
    for make in (use_bookshop.sign_in, use_bookshop.sign_in_as_a_program):
        assert make("https://shop.example.com/mcp")
