"""Separate environments for other packages, with Millstream installed."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_environment(home: Path, wanted: Sequence[str]) -> None:
    """Make an environment unless it's there.

    Args:
        home: Its folder.
        wanted: Requirements of its packages.

    Raises:
        RuntimeError: A package can't be installed.
    """
    mark = home / "ready"
    if mark.is_file() and mark.read_text("utf-8") == "\n".join(wanted):
        return
    uv = [str(Path(sys.executable).with_name("uv")), "--quiet"]
    for command in (
        [*uv, "venv", "--clear", "--python", sys.executable, str(home)],
        [*uv, "pip", "install", "--python", str(home / "bin" / "python"), *wanted, "--editable", str(ROOT)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"can't be installed: {done.stderr.strip().splitlines()[-1]}")
    mark.write_text("\n".join(wanted), "utf-8")
