import gc
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from millstream._cli import gc_paused
from patience import WAIT

PROGRAM = """
import gc, sys
from millstream import Server
print(gc.isenabled(), gc.get_freeze_count() > 30_000, gc.get_stats()[2]["collections"], file=sys.stderr)
mcp = Server("shop")
"""
RUN = "from millstream._cli import main; main()"


@pytest.mark.server
@pytest.mark.parametrize("transport", [("--transport", "stdio"), ("--transport", "stdio", "--dev")])
def test_garbage_collector_is_off_while_loading(tmp_path: Path, transport: Sequence[str]) -> None:
    file = tmp_path / "shop.py"
    file.write_text(PROGRAM, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", str(file), *transport], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=WAIT, check=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[0] == "True True 0"


@pytest.mark.server
def test_plain_start_loads_neither_the_command_line_library_nor_metrics(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(
        "import sys; sys.exit(str([each in sys.modules for each in ('cyclopts', 'rich', 'prometheus_client')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", str(file), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert "SystemExit: [False, False, False]" in done.stderr


def test_garbage_collector_is_restored_after_loading() -> None:
    with suppress(ImportError), gc_paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.server
def test_client_imports_cryptography_only_when_signing() -> None:
    check = (
        "import sys, millstream.client._oauth.flow\nprint(*[each for each in sys.modules if 'cryptography' in each])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout == "\n"
