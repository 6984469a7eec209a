"""Hooks of schemathesis around each request to the OAuth routes. `oauth_routes` passes this module to schemathesis."""

import os
from pathlib import Path
from typing import Any

import schemathesis

from fuzz.people import address


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Use a new client address for each request, like a browser on the server's own pages."""
    case.headers["x-forwarded-for"] = address()
    case.headers["origin"] = os.environ["SHOP_URL"]


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Record the request and the response."""
    with Path(os.environ["OAUTH_ANSWERS"]).open("a") as answers:
        answers.write(f"{case.method} {case.path} {response.status_code}\n")
