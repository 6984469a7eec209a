"""What schemathesis does around each request to the OAuth routes: see `oauth_routes`, which names this module to it."""

import os
from pathlib import Path
from typing import Any

import schemathesis

from fuzz.people import address


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Come from another address each time, as a browser of the server's own pages does."""
    case.headers["x-forwarded-for"] = address()
    case.headers["origin"] = os.environ["SHOP_URL"]


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Say what was asked, and how it was answered."""
    with Path(os.environ["OAUTH_ANSWERS"]).open("a") as answers:
        answers.write(f"{case.method} {case.path} {response.status_code}\n")
