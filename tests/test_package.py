import subprocess
import sys
from pathlib import Path

import pytest

import millstream
from patience import WAIT
from processes import ROOT

pytestmark = pytest.mark.server


def test_wheel_and_sdist_install_and_serve(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "dist.py", "--out", tmp_path / "dist"],
        capture_output=True, text=True, timeout=10 * WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[2] for line in done.stdout.splitlines()] == [
        f" installs, says it is {millstream.__version__}, and answers over stdio"
    ] * 2
