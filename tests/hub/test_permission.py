import logging
from typing import Any

import pytest

from hub_parts import listen, open_hub
from millstream.hub import Forbidden


def no_secrets(principal: Any, action: str, channel: str) -> bool:
    """A hook as programs write it: it knows nothing of the hub's own channels."""
    return not channel.startswith("secret")


async def test_presence_follows_channel_permission() -> None:
    async with open_hub(authorize=no_secrets) as hub:
        for channel in ("secret.a", "$presence.secret.a", "$presence.secret.*"):
            with pytest.raises(Forbidden):
                await listen(hub, channel)
        every = await listen(hub, "$presence.>")
        await listen(hub, "open.a", client_id="ann")
        with pytest.raises(Forbidden):
            await listen(hub, "open.a", "secret.a", client_id="bob")
        assert len(every.data) == 1


async def test_presence_patterns_follow_channel_permission() -> None:
    def authorize(principal: Any, action: str, channel: str) -> bool:
        asked.append(channel)
        return channel != "secret" or len(asked) == 2  # the member itself may enter

    asked: list[str] = []
    async with open_hub(authorize=authorize) as hub:
        every = await listen(hub, "$presence.*")
        await listen(hub, "secret", client_id="ann")
        assert asked == ["*", "secret", "secret"]
        assert every.data == []


async def test_failing_permission_hook_rejects_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:

    def authorize(principal: Any, action: str, channel: str) -> bool:
        if channel.startswith("boom"):
            raise KeyError(channel)
        return True

    async with open_hub(authorize=authorize) as hub:
        with caplog.at_level(logging.ERROR, "millstream.hub"):
            every, some = await listen(hub, ">"), await listen(hub, "news")
            with pytest.raises(Forbidden):
                await listen(hub, "boom.x")
            with pytest.raises(Forbidden):
                hub.admission.publish("boom.x")
            for number in range(3):
                await hub.publish(f"boom.{number}", "unheard")
            await hub.publish("news", "heard")
        assert (every.data, some.data) == (["heard"], ["heard"])
        assert len(caplog.records) == 1
