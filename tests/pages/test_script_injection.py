from pathlib import Path

import pytest
from playwright.sync_api import expect

from pages_world import OpenPage, call
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

PROGRAM = '''
import logging
from typing import Annotated, Literal
from msgspec import Meta
from millstream import Info, Server

EVIL = """<img src=x onerror="window.owned=1"><script>window.owned=1</script>"""
mcp = Server("evil", info=Info(title=EVIL), instructions=EVIL, version=EVIL[:30])
logger = logging.getLogger(EVIL)


@mcp.tool(title=EVIL, description=EVIL)
async def bad(text: Annotated[str, Meta(description=EVIL)] = EVIL, choice: Literal["<b>one</b>", "two"] = "two") -> str:
    logger.warning(EVIL, extra={EVIL: EVIL})
    await mcp.hub.publish("broadcast", {"text": EVIL, "name": EVIL})
    await mcp.hub.publish(text, EVIL)
    return EVIL


@mcp.tool
def raises() -> str:
    raise ValueError(EVIL)


mcp.resource("evil://x", name=EVIL, title=EVIL, description=EVIL, mime_type="text/html")(lambda: EVIL)
mcp.prompt(name="evil", title=EVIL, description=EVIL)(lambda: EVIL)
'''
CONTENT = {"dashboard": "#log", "chat": "#main", "inspect": "#main", "docs": "#main"}


@pytest.mark.parametrize("page_name", CONTENT)
def test_untrusted_text_is_never_markup(tmp_path: Path, page_name: str, open_page: OpenPage) -> None:
    port = free_port()
    file = tmp_path / "evil.py"
    file.write_text(PROGRAM)
    address = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(file), port, "--serve", "all"), port, tmp_path / "log"):
        call(address, "bad", {"text": "room"})
        call(address, "raises", {})
        page = open_page(f"{address}/{page_name}", name="<i>me</i>", lossy=True)
        call(address, "bad", {"text": "chat"})
        expect(page.locator("body")).to_contain_text("<img src=x onerror=")
        assert page.evaluate("() => window.owned") is None
        assert page.evaluate("() => document.querySelectorAll('main img, main script, main b').length") == 0
