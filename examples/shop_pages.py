"""Pages behind sign-in, and a webhook that checks its sender's signature."""

# region: page
import hashlib
import hmac
import os

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from millstream import Server

mcp = Server("shop", serve="rest")
paid: list[str] = []


@mcp.route("/account")
async def account(request: Request) -> Response:
    caller = request.state.principal
    return HTMLResponse(f"<h1>Hello, {caller.subject if caller else 'stranger'}</h1>")


# endregion


# region: webhook
SECRET = os.environ.get("BANK_SECRET", "")


@mcp.route("/hooks/bank", methods=["POST"], public=True)
async def payment(request: Request) -> Response:
    body = await request.body()
    expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    if not SECRET or not hmac.compare_digest(expected, request.headers.get("x-signature", "")):
        raise HTTPException(403, "The signature is invalid.")
    paid.append((await request.json())["order"])
    return JSONResponse({"paid": len(paid)})


# endregion

if __name__ == "__main__":
    mcp.run()
