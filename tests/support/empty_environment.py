"""Environments in which only the wheel of this tree is installed, and what its text tells people to install.

`pip` is uv's, with the versions of the lock file and the wheel of this tree; otherwise the environments have no access
to this one.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from patience import WAIT
from processes import ROOT


def build_wheel(out: Path) -> Path:
    """Build the wheel of this tree into a folder."""
    run([sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", out, ROOT])
    return next(out.glob("*.whl"))


class Environment:
    """An environment in which nothing is installed yet. It replaces an earlier one in its folder."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        run(
            [
                sys.executable,
                "-m",
                "uv",
                "venv",
                "--quiet",
                "--clear",
                "--no-project",
                "--python",
                sys.executable,
                folder,
            ]
        )
        self.bin = folder / "bin"
        pins = re.findall(r"^[\w.-]+==[^ ;\\]+", (ROOT / "requirements" / "test.txt").read_text("utf-8"), re.MULTILINE)
        pins = [pin for pin in pins if not pin.startswith("mcp")]  # programs need several versions of it
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join([*pins, f"millstream @ {wheel.as_uri()}"]))
        pip = self.bin / "pip"
        pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uv --quiet pip "$@" --python "{self.bin}/python"\n')
        pip.chmod(0o755)
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "XDG_STATE_HOME") if name in os.environ}
        self.variables = {
            **kept,
            "PATH": f"{self.bin}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin",
            "UV_CONSTRAINT": str(constraints),
        }

    def type(self, line: str, folder: Path) -> str:
        """Run a line in a shell, and return its output. Only pip gets the settings of this machine's package index."""
        variables = {**os.environ, **self.variables} if line.startswith("pip ") else self.variables
        return run(["sh", "-c", line], folder, variables)


def run(command: Sequence[str | Path], folder: Path = ROOT, variables: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=10 * WAIT, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
