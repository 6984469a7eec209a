"""Processes that tests share: what one test leaves unwell, the next one doesn't meet."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from behaviour.combinations import NEWEST, Combination
from behaviour.opening import Processes, open_client
from processes import Tests, answers, millstream, serving, shared


def ends(pid: int) -> None:
    """The process is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def stands_still(pid: int) -> None:
    """The process is there and does nothing."""
    os.kill(pid, signal.SIGSTOP)


def fails_a_test(pid: int) -> None:
    """The process looks well, but a test has failed beside it."""
    Tests.failures += 1


SERVER = pytest.mark.server
TROUBLE = pytest.mark.parametrize("trouble", [ends, stands_still, fails_a_test], ids=lambda each: each.__name__)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Processes that no other test shares; the count of failures is put back."""
    monkeypatch.setattr(Tests, "failures", Tests.failures)
    found = Processes(tmp_path)
    yield found
    found.end()


@SERVER
@TROUBLE
@pytest.mark.parametrize("revision", ["2025-11-25", NEWEST])
async def test_a_stdio_process_that_a_test_left_unwell_is_replaced_at_its_next_use(
    own: Processes, revision: str, trouble: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed defect: ninety tests failed because one had lost the process that they shared."""
    combination = Combination(revision, "stdio")
    pids: list[int] = []
    for _ in range(2):
        async with open_client(combination, own) as client:
            assert client.process is not None
            pids.append(client.process.popen.pid)
            assert (await client.call("text")).text == "plain"
    assert pids[0] == pids[1]

    trouble(pids[0])
    with monkeypatch.context() as impatient:
        impatient.setattr("behaviour.harness.WAIT", 0.01)
        replaced = await own.get(combination, client.capabilities)
    assert replaced.popen.pid != pids[0]
    async with open_client(combination, own) as client:
        assert client.process is replaced
        assert (await client.call("text")).text == "plain"


@SERVER
async def test_a_stdio_process_that_says_what_nobody_asked_is_replaced(own: Processes) -> None:
    """What a test didn't wait for would be told to the next one."""
    combination = Combination(NEWEST, "stdio")
    async with open_client(combination, own) as client:
        assert client.process is not None
        pid = client.process.popen.pid
        os.kill(pid, signal.SIGSTOP)  # so that the answer comes when nobody reads any more
        await client.link.send({"jsonrpc": "2.0", "id": "left", "method": "tools/list", "params": client.params()})
    os.kill(pid, signal.SIGCONT)
    async with open_client(combination, own) as other:
        assert other.process is not client.process


@SERVER
@TROUBLE
def test_a_server_that_a_test_left_unwell_is_replaced_at_its_next_use(
    tmp_path: Path, trouble: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for servers that tests reach by a port."""
    monkeypatch.setattr(Tests, "failures", Tests.failures)
    with shared(partial(millstream, "examples/greet.py"), tmp_path) as server:
        port = server.port()
        assert server.port() == port
        assert server.process is not None
        trouble(server.process.pid)
        with monkeypatch.context() as impatient:
            impatient.setattr("processes.answers", partial(answers, within=0.01))
            replaced = server.port()
        assert replaced != port
        assert answers(replaced)
        assert server.port() == replaced


def test_a_test_without_the_mark_starts_no_server(tmp_path: Path) -> None:
    """`make unit` runs where there is no time for servers and no Node."""
    with pytest.raises(AssertionError, match="mark"), serving(["false"], 1, tmp_path / "log"):
        pass
    with pytest.raises(AssertionError, match="mark"):
        Processes(tmp_path).start()
