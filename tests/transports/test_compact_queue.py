import asyncio

from millstream._http.message import CompactEvent
from millstream._http.websocket import CompactQueue
from patience import WAIT


async def test_compact_event_blocks_until_it_is_set() -> None:
    gate = CompactEvent()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    gate.notify()
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting.pop().cancel()
    gate.set()
    assert gate.is_set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), WAIT) == [True, True]
    assert await gate.wait()
    gate.clear()
    assert not gate.is_set()


async def test_notify_wakes_waiters_to_check_their_condition() -> None:
    gate = CompactEvent()
    waiting = asyncio.create_task(gate.wait_changed())
    await asyncio.sleep(0)
    gate.notify()
    await asyncio.wait_for(waiting, WAIT)
    assert not gate.is_set()


async def test_compact_queue_returns_items_in_order() -> None:
    inbox: CompactQueue[int] = CompactQueue()
    reading = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    for number in range(3):
        inbox.put_nowait(number)
    assert await asyncio.wait_for(reading, WAIT) == 0
    assert not inbox.empty()
    assert [await inbox.get() for _ in range(2)] == [1, 2]
    assert inbox.empty()
