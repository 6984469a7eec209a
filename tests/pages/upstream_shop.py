"""A shop where people sign in with a password, or at an upstream that accepts everyone, for tests of its pages."""

import os
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from issuing_world import KnownUsers
from millstream import Server, auth
from millstream.auth.providers import AuthorizationRedirect, Callback, SignInFailed, User


class Elsewhere:
    """An upstream at another port of this machine."""

    name = "elsewhere"
    label = "Continue with Elsewhere"

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Send the browser there."""
        return AuthorizationRedirect(
            f"{os.environ['UPSTREAM_URL']}/go?{urlencode({'redirect_uri': callback, 'state': state})}"
        )

    async def finish(self, callback: Callback) -> User:
        """Whoever it is."""
        if "code" not in callback.query:
            raise SignInFailed("Elsewhere does not know you.")
        return User(callback.query["code"], "Grace Hopper")


mcp = Server(
    os.environ.get("SHOP_NAME", "shop"),
    serve="all",
    auth=auth.issuer(
        os.environ["SHOP_URL"],
        users=[KnownUsers(), Elsewhere()],
        scopes=["shop:use"],
        scope_descriptions={"shop:use": "Look at books and prices", "orders:write": "Order books, up to 100 € a month"},
    ),
)


@mcp.tool
async def order(title: str) -> str:
    """Order a book."""
    return title


@mcp.route("/notes/{name}", methods=["GET", "POST"])
async def notes(request: Request) -> Response:
    """A private page of the program, with a form and a request of its script."""
    who = request.state.principal.subject
    if request.method == "POST":
        given = (await request.body()).decode()
        return HTMLResponse(f"<title>Saved</title><p>{who} saved {given} in {request.path_params['name']}</p>")
    return HTMLResponse(
        "<title>Notes</title><form method='post'><input name='text' aria-label='Text'><button>Save</button></form>"
        "<output></output><script>fetch('/notes/x', {method: 'POST', body: 'text=y'}).then((reply) => reply.text())"
        ".then((text) => { document.querySelector('output').textContent = text; });</script>"
    )
