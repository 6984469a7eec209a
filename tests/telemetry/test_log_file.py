import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream._config import Settings
from millstream._telemetry import logs


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which is restored afterward."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    for each in [each for each in logger.handlers if each not in handlers]:
        logger.removeHandler(each)
        each.close()
    logger.setLevel(level)


def test_records_go_to_the_file_as_json_lines(
    tmp_path: Path, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "server.log"
    logs.configure_as(Settings(log_file=str(path)))
    root.info("open", extra={"password": "secret"})
    line = json.loads(path.read_text())
    assert (line["message"], line["password"]) == ("open", "***")
    assert "open" in capsys.readouterr().err
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    with pytest.raises(ValueError, match="can't be written"):
        logs.configure_as(Settings(log_file=str(tmp_path)))


def test_rotated_log_files_are_recreated(tmp_path: Path, root: logging.Logger) -> None:
    path = tmp_path / "server.log"
    logs.configure_as(Settings(log_file=str(path)))
    root.info("one")
    path.rename(tmp_path / "moved")
    root.info("two")
    assert [json.loads(each.read_text())["message"] for each in (tmp_path / "moved", path)] == ["one", "two"]
