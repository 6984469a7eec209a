"""Notifications that wait for the client of a call."""

import pytest

from millstream._gateway.messages.router import LOG, MAX_QUEUED_BYTES, NotificationQueue
from millstream.extensions import Share


async def test_messages_that_nobody_reads_are_dropped_progress_first(caplog: pytest.LogCaptureFixture) -> None:
    memory = Share(2 * MAX_QUEUED_BYTES)
    queue = NotificationQueue(memory, "Ada", "talk")
    step, log = b"p" * 1000, b"l" * 1000
    for _ in range(400):
        assert queue.put("notifications/progress", step)
        assert queue.put(LOG, log)
    for _ in range(1000):
        queue.put(LOG, log)
    assert memory.count("Ada") <= memory.each
    kept = [queue.take()[0] for _ in range(len(queue))]
    assert set(kept) == {LOG}
    assert memory.count("Ada") == 0
    queue.stop()
    dropped = f"dropped 400 progress and {1400 - len(kept):,} messages"
    assert f"talk: {dropped}, because the client didn't read them in time" in caplog.text


async def test_calls_of_one_owner_share_the_memory_of_their_messages() -> None:
    memory = Share(MAX_QUEUED_BYTES)
    queues = [NotificationQueue(memory, "Ada", "talk") for _ in range(50)]
    for queue in queues:
        for _ in range(100):
            queue.put(LOG, b"l" * 1000)
    assert memory.count("Ada") <= memory.each
    assert memory.take("Eve", memory.each)
    for queue in queues:
        queue.stop()
    assert memory.count("Ada") == 0


async def test_methods_of_dropped_messages_take_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    memory = Share(2 * MAX_QUEUED_BYTES)
    queue = NotificationQueue(memory, "Ada", "talk")
    for number in range(100):
        queue.put(f"acme/{number}/{'x' * 65_536}", b"{}")
    assert memory.count("Ada") <= memory.each
    assert 0 < len(queue) < 17
    queue.stop()
    assert memory.count("Ada") == 0
    assert "xxx" not in caplog.text
