"""What a command loads, and what that costs whoever waits for it."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from millstream._cli.load import load
from millstream._cli.loading import gc_paused
from patience import WAIT

COLLECTED = """
import gc, sys
full = []
gc.callbacks.append(lambda phase, about: full.append(about) if phase == "start" and about["generation"] == 2 else None)
sys.argv[1:] = ["run", sys.argv[1], "--transport", "stdio"]
from millstream._cli import main
main()
"""
PROGRAM = """
import gc, sys
from contextlib import asynccontextmanager
from millstream import Server
full = sys.modules["__main__"].full
print("loading", gc.isenabled(), len(full), file=sys.stderr)

@asynccontextmanager
async def lifespan(server):
    print("serving", gc.isenabled(), len(full), file=sys.stderr)
    yield

mcp = Server("shop", lifespan=lifespan)
"""


@pytest.mark.server
def test_nobody_looks_for_garbage_in_what_a_server_loads(tmp_path: Path) -> None:
    """A fixed defect: looking through 65,000 objects again and again took a fifth of the start."""
    file = tmp_path / "shop.py"
    file.write_text(PROGRAM, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED, str(file)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=WAIT, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith(("loading", "serving"))]
    assert said == ["loading False 0", "serving True 0"]


def test_a_program_that_cannot_be_loaded_leaves_the_collector_on(tmp_path: Path) -> None:
    """Whatever comes then, such as a test, needs it."""
    file = tmp_path / "broken.py"
    file.write_text("import gc\nassert not gc.isenabled()\n1 / 0\n", "utf-8")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        load(str(file))
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    """Whoever has switched it off had a reason."""
    gc.disable()
    try:
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.server
def test_a_client_that_signs_nothing_loads_no_cryptography() -> None:
    """Nor does a server with an inspector: most never send a person anywhere to sign in."""
    check = (
        "import sys, millstream.client._oauth.flow\nprint(*[each for each in sys.modules if 'cryptography' in each])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout == "\n"
