import logging
import sys

import pytest

from millstream._telemetry.logs import capture_prints


class Records(logging.Handler):
    """Keeps the source and text of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.lines.append((record.name, record.getMessage()))


def test_printed_lines_are_recorded_whole(capsys: pytest.CaptureFixture[str]) -> None:
    records = Records()
    restore = capture_prints(records)
    try:
        sys.stdout.write("one ")
        sys.stdout.write("line\n")
        sys.stderr.write("broken\n")
        sys.stdout.write("x" * 9000)
        assert records.lines == [("stdout", "one line"), ("stderr", "broken"), ("stdout", "x" * 9000)]
    finally:
        restore()
    sys.stdout.write("later\n")
    assert len(records.lines) == 3
    assert capsys.readouterr().out == "one line\n" + "x" * 9000 + "later\n"
