import asyncio

from millstream._tasks import Tasks
from patience import WAIT


async def test_single_task_starts_again_only_after_it_has_ended() -> None:
    started: list[str] = []
    may_end = asyncio.Event()

    async def work(name: str) -> None:
        started.append(name)
        await may_end.wait()

    tasks = Tasks()
    for name in ("one", "one", "another"):
        tasks.spawn_once(work, name)
    await asyncio.sleep(0)
    assert started == ["one", "another"]
    held = asyncio.all_tasks()
    may_end.set()
    await tasks.settle(WAIT)
    tasks.spawn_once(work, "one")
    await tasks.settle(WAIT)
    assert started == ["one", "another", "one"]
    assert sum(task.done() for task in held) == 2, "an ended task that something refers to doesn't count"
    await tasks.close()
