import signal
from collections import Counter
from pathlib import Path

import pytest

from workers_world import PROGRAM, run_workers, until

pytestmark = [pytest.mark.server, pytest.mark.nightly]
SOON = """
import msgspec
from millstream._stores.local import store as local_store
from millstream.hub._hub import Hub
from millstream.hub._channels import HubLimits

usual, refresh = HubLimits.of, Hub.refresh
HubLimits.of = lambda settings: msgspec.structs.replace(usual(settings), refresh=0.2)


async def counted(self, **options):
    if (HERE / "impatient").exists():
        local_store.PATIENCE = 1.0
    try:
        await refresh(self, **options)
    except Exception:
        with (HERE / "failed").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        raise


Hub.refresh = counted
mcp = Server("shop", lifespan=lifespan, serve="hub")
"""
BEGINS, ENDS = "The hub can't refresh its records; retrying: ", "The hub can refresh its records again."


def test_stalled_parent_is_logged_once_per_worker(tmp_path: Path) -> None:
    program = PROGRAM.replace('mcp = Server("shop", lifespan=lifespan)\n', SOON)
    assert program != PROGRAM
    failed = tmp_path / "failed"
    failed.touch()

    def said(worker: int) -> list[str]:
        return [
            each["message"].partition(" It failed ")[0]
            for each in served.records
            if each.get("worker") == worker and each["message"].startswith((BEGINS, ENDS))
        ]

    with run_workers(tmp_path, 2, program=program) as served:
        (tmp_path / "impatient").touch()  # not before they serve: the machine may stand still while they start
        served.process.send_signal(signal.SIGSTOP)
        try:
            before = Counter(failed.read_text().split())
            for pid in map(str, served.pids):
                until(lambda: Counter(failed.read_text().split())[pid] >= before[pid] + 3)  # noqa: B023
        finally:
            served.process.send_signal(signal.SIGCONT)
        for worker in (1, 2):
            until(lambda: said(worker)[-1:] == [ENDS], served.log)  # noqa: B023
            begun, over = said(worker)[::2], said(worker)[1::2]
            assert len(begun) == len(over)
            assert all(text.startswith(BEGINS) and "parent process" in text for text in begun)
            assert set(over) == {ENDS}
        assert "Traceback" not in served.log
