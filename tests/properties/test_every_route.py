"""Every HTTP route, including OAuth's, receives valid requests with one or two damaged members, and none fails.

The long run of the same inputs is `make fuzz`.
"""

from pathlib import Path

import pytest

from fuzz import oauth_routes
from fuzz.people import RECIPES
from fuzz.plausible import Plausible, run, shop
from patience import WAIT

pytestmark = [pytest.mark.server, pytest.mark.nightly]

INPUTS = 400


def test_schemathesis_finds_no_problem_in_oauth_routes(tmp_path: Path) -> None:
    with shop(tmp_path) as (port, log):
        answers, report = oauth_routes.run(port, tmp_path, "--max-examples", "8", "--seed", "1")
    assert report == ""
    assert answers.total() > INPUTS
    assert {"POST /token 200", "POST /token 400", "POST /token 401", "POST /register 201", "POST /introspect 200",
            "POST /revoke 200", "GET /authorize 200", "GET /authorize 303"} <= answers.keys()  # fmt: skip
    assert b"Traceback" not in log.read_bytes()


def test_malformed_authenticated_requests_never_get_500(tmp_path: Path) -> None:
    with shop(tmp_path) as (port, log):
        asking = Plausible(port)
        asking.routes.patience = WAIT
        assert asking.prove() == {}
        run(asking, examples=INPUTS, seed=True)
    assert [fault for fault in asking.routes.faults if "500" in fault or "hangs" in fault] == []
    assert sum(asking.by_recipe.values()) >= INPUTS // 2
    assert len(asking.by_recipe) > len(RECIPES) * 3 // 4
    assert b"Traceback" not in log.read_bytes()
