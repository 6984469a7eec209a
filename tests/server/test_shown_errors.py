import logging
from pathlib import Path

import pytest

from millstream import Server, Settings
from millstream.testing import ServerError, connect

HERE = Path(__file__).name


def shop(*, show_errors: bool) -> Server:
    """Return a server whose functions fail on lines of this file, directly and inside libraries."""
    mcp = Server("shop", settings=Settings(show_errors=show_errors))

    def price(copies: int) -> float:
        return 10 / copies

    @mcp.tool
    async def order(copies: int) -> float:
        return price(copies)

    @mcp.tool
    def parse(text: str) -> int:
        try:
            return len(Path(text).read_text("utf-8"))
        except OSError as exc:
            raise RuntimeError("no such order") from exc

    @mcp.resource("shop://sales")
    async def sales() -> float:
        return price(0)

    return mcp


async def test_callers_see_the_traceback_in_development() -> None:
    async with connect(shop(show_errors=True)) as client:
        text = (await client.call("order", copies=0, raise_on_error=False)).text
        with pytest.raises(ServerError) as caught:
            await client.read("shop://sales")
    for each in (text, str(caught.value)):
        assert each.removesuffix(" (-32603)").endswith("ZeroDivisionError: division by zero")
        assert each.count("File ") == 2
        assert each.count(HERE) == 2
        assert "return price(" in each
        assert "return 10 / copies" in each


async def test_callers_see_only_an_incident_in_production() -> None:
    async with connect(shop(show_errors=False)) as client:
        text = (await client.call("order", copies=0, raise_on_error=False)).text
    assert "incident" in text
    assert not any(word in text for word in ("Zero", "price", HERE))


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_log_shows_user_frames_and_all_frames_at_debug(level: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(level.upper(), "millstream")
    async with connect(shop(show_errors=False)) as client:
        await client.call("parse", text="/nowhere", raise_on_error=False)
    (record,) = [each for each in caplog.records if each.exc_info]
    said = logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
    assert "no such order" in said
    assert "The above exception was the direct cause" in said
    assert ("pathlib" in said, "millstream" in said.replace("tests/server", "")) == (level == "debug",) * 2
    assert said.count(HERE) == 2
