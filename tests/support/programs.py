"""Programs that tests need and pip can't install: which are missing, and the command that installs them."""

import re
import shutil
from collections.abc import Iterable

import pytest

MISSING = "not installed: "
"""Beginning of the reason of a skipped test; a name of `_PACKAGES` follows."""
_PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
_PACKAGES = {
    "apache2": "apache2-bin",
    "caddy": "caddy",
    "cc": "gcc libc6-dev",
    "chromium-headless-shell": "chromium",
    "fish": "fish",
    "go": "golang-go",
    "haproxy": "haproxy",
    "nginx": "nginx",
    "openssl": "openssl",
    "rabbitmq-server": "rabbitmq-server",
    "redis-server": "redis-server",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "tmux": "tmux",
    "zsh": "zsh",
}
"""Debian's package of each program."""
_TARGETS = {
    "agents": ".venv-agents/.ready",
    "agents2": ".venv-agents2/.ready",
    "java-sdk": ".bench/java-sdk/.ready",
    "kafka": ".bench/kafka/.ready",
    "traefik": ".bench/traefik",
}
"""What `make` fetches or builds for tests of the night."""


def find_program(*names: str) -> str | None:
    """Return the path of the first program that's installed. Servers are found outside a user's PATH, too."""
    return next(filter(None, (shutil.which(name) or shutil.which(name, path=_PATH) for name in names)), None)


def needs(name: str) -> pytest.MarkDecorator:
    """Leave tests out if a program is missing. In CI, the run then fails at its end."""
    return pytest.mark.skipif(find_program(name) is None, reason=f"{MISSING}{name}")


def require_program(name: str, *others: str) -> str:
    """Return the path of the first program that's installed. If all are missing, skip the test."""
    found = find_program(name, *others)
    if found is None:
        pytest.skip(f"{MISSING}{name}")
    return found


def describe_missing(reasons: Iterable[str]) -> list[str]:
    """Return lines about the tests that were left out, and the command that installs what they need."""
    names = [name[1] for name in (re.search(rf"{MISSING}([\w-]+)", reason) for reason in reasons) if name]
    if not names:
        return []
    programs = sorted(set(names))
    packages = " ".join(_PACKAGES[name] for name in programs if name in _PACKAGES)
    targets = " ".join(_TARGETS[name] for name in programs if name in _TARGETS)
    return [
        *(f"{names.count(name):5} tests need {name}" for name in programs),
        *([f"Install with: sudo apt-get install {packages}"] if packages else []),
        *([f"Get with: make {targets}"] if targets else []),
    ]
