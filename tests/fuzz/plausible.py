"""Damaged requests of signed-in users, to every route of a server in its own process.

Each input is a valid request from `RECIPES` with one or two damaged members. The valid requests are checked first.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.damage import Damage, cuts, damage_request, damages, request_bytes
from fuzz.people import RECIPES, People, address
from fuzz.routes import Routes
from processes import TEST_PATH, free_port, run_command, run_server

_RENEWED = 250
"""Inputs after which everything that is good is fetched anew."""


class Plausible:
    """The inputs and their counts."""

    def __init__(self, port: int) -> None:
        self.people = People(f"http://127.0.0.1:{port}")
        self.routes = Routes(port)
        self.by_recipe = Counter[str]()

    def prove(self) -> dict[str, tuple[int, int]]:
        """Return the recipes whose valid request has an unexpected status, with that status."""
        found: dict[str, tuple[int, int]] = {}
        for name, (make, status) in RECIPES.items():
            asked = make(self.people.good, self.people.url)
            before = self.routes.statuses.copy()
            self.routes.ask(request_bytes(asked, self.people.host, address()), name)
            (had,) = (self.routes.statuses - before).elements()
            if had != status:
                found[name] = (status, had)
        self.people.renew()  # codes were used
        return found

    def ask(self, name: str, how: list[Damage], cut: int) -> None:
        """Send one input."""
        if self.routes.inputs % _RENEWED == _RENEWED - 1:
            self.people.renew()
        good = self.people.good
        asked = damage_request(RECIPES[name][0](good, self.people.url), how, list(good.values()))
        self.by_recipe[name] += 1
        self.routes.ask(request_bytes(asked, self.people.host, address(), cut), f"{name} {how} {cut}")


def run(asking: Plausible, *, examples: int, until: float = float("inf"), seed: bool = False) -> None:
    """Send a number of inputs, or until a time."""
    quiet: Any = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=examples, phases=[Phase.generate], derandomize=seed, **quiet)
    @given(st.sampled_from(sorted(RECIPES)), damages, cuts)
    def ask(name: str, how: list[Damage], cut: int) -> None:
        if time.monotonic() < until:
            asking.ask(name, how, cut)

    ask()


@contextmanager
def shop(folder: Path) -> Iterator[tuple[int, Path]]:
    """Run the server during the block. Yields its port and its log."""
    port, log = free_port(), folder / "plausible-server.log"
    known = {"SHOP_URL": f"http://127.0.0.1:{port}", "MILLSTREAM_SECRET_KEY": "f" * 40,
             "PYTHONPATH": os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    before = {name: os.environ.get(name) for name in known}
    os.environ.update(known)
    try:
        with run_server(run_command("tests/fuzz/shop.py", port), port, log):
            yield port, log
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
