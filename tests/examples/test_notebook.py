import logging

import pytest

from examples import notebook
from millstream.client import ToolFailed
from millstream.testing import connect


async def test_notebook_pages_show_working_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "notebook")
    async with connect(notebook.mcp) as client:
        found = await client.call("find", words="MILK")
        assert found.data == [{"number": 1, "text": "Buy milk"}]
        with pytest.raises(ToolFailed, match="words"):
            await client.call("find", words="m")
        with pytest.raises(ToolFailed, match="There is no note 99"):
            await client.call("remove", number=99)
        (link,) = (await client.call("add", text="  ")).content
        assert link.uri == "notes://3"
        assert (await client.read("notes://all"))[0].text.splitlines()[0] == "1: Buy milk"
        assert (await client.read("notes://2"))[0].text == "Call Ada"
        prompt = await client.prompt("plan", day="Monday")
        assert [each.role for each in prompt.messages] == ["user", "assistant", "user"]
        text, picture = (await client.call("sketch", number=2)).content
        assert (text.text, picture.mime_type) == ("Call Ada", "image/png")
        assert "note.png" in (await client.read("pictures://"))[0].text
        assert (await client.call("tidy")).text == "Removed 1 notes."
    assert "Removed 1 empty notes" in caplog.text
