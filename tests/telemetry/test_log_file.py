"""A log file that several workers write, and that is replaced when it is large."""

import json
import logging
import multiprocessing
import stat
from pathlib import Path

import pytest

from millstream._config import Settings
from millstream._telemetry import log_file, logs
from millstream._telemetry.log_file import LogFile


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("shop", logging.INFO, __file__, 1, text, None, None)


def write(path: str, worker: int, count: int) -> None:
    """What one worker of several does."""
    file = LogFile(path, max_bytes=2_000, count=1_000)
    file.setFormatter(logs.JsonLines())
    for number in range(count):
        file.emit(record(f"{worker} {number}"))
    file.close()


def test_workers_that_share_a_file_lose_no_line_and_break_none(tmp_path: Path) -> None:
    """A handler for one process renames the file under the others, and takes a file of theirs for its own."""
    path = tmp_path / "logs" / "server.log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write, args=(str(path), worker, 400)) for worker in range(3)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert [each.exitcode for each in workers] == [0, 0, 0]
    files = list(path.parent.iterdir())
    assert len(files) > 3
    lines = [json.loads(line)["message"] for each in files for line in each.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{worker} {number}" for worker in range(3) for number in range(400))


def test_the_oldest_file_goes_and_the_newest_has_the_plain_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many are kept as were asked for."""
    monkeypatch.setattr(log_file, "_LOOK_EVERY", 0)
    path = tmp_path / "server.log"
    file = LogFile(str(path), max_bytes=1, count=2)
    for number in range(6):
        file.emit(record(str(number)))
    file.close()
    file.close()
    found = {each.name: each.read_text().split() for each in tmp_path.iterdir()}
    assert found == {"server.log": ["5"], "server.log.1": ["4"], "server.log.2": ["3"]}
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0


def test_a_file_that_somebody_moved_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logrotate program of a system renames files, and tells nobody."""
    monkeypatch.setattr(log_file, "_LOOK_EVERY", 0)
    path = tmp_path / "server.log"
    file = LogFile(str(path), max_bytes=1_000, count=2)
    file.emit(record("one"))
    path.rename(tmp_path / "moved")
    file.emit(record("two"))
    file.close()
    assert ((tmp_path / "moved").read_text(), path.read_text()) == ("one\n", "two\n")


def test_a_setting_sends_the_logs_to_a_file_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As lines of JSON, whatever standard error is; a file that cannot be is said before anything starts."""
    path = tmp_path / "server.log"
    root = logging.getLogger()
    before = list(root.handlers), root.level
    try:
        logs.configure_as(Settings(log_file=str(path)))
        logging.getLogger("shop").info("open", extra={"password": "secret"})
        line = json.loads(path.read_text())
        assert (line["message"], line["password"]) == ("open", "***")
        assert "open" in capsys.readouterr().err
        with pytest.raises(ValueError, match="can't be written"):
            logs.configure_as(Settings(log_file=str(tmp_path)))
    finally:
        for each in [each for each in root.handlers if each not in before[0]]:
            root.removeHandler(each)
            each.close()
        root.setLevel(before[1])
