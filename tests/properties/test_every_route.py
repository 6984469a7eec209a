"""Every HTTP route, OAuth's among them, with good requests of which one or two members were damaged: none fails.

The long run of the same inputs is `make fuzz`.
"""

from pathlib import Path

import pytest

from fuzz.people import RECIPES
from fuzz.plausible import Plausible, run, shop
from patience import WAIT

pytestmark = pytest.mark.server

INPUTS = 400


def test_a_damaged_request_of_somebody_who_is_signed_in_is_answered_and_never_with_500(tmp_path: Path) -> None:
    """Our choice: what a peer sends is never an unexpected error. The requests are good before they are damaged."""
    with shop(tmp_path) as (port, log):
        asking = Plausible(port)
        asking.routes.patience = WAIT
        assert asking.prove() == {}
        run(asking, examples=INPUTS, seed=True)
    assert [fault for fault in asking.routes.faults if "500" in fault or "hangs" in fault] == []
    assert sum(asking.by_recipe.values()) >= INPUTS // 2
    assert len(asking.by_recipe) > len(RECIPES) * 3 // 4
    assert b"Traceback" not in log.read_bytes()
