"""A server whose callers sign in: its own OAuth authorization server is at /authorize, /token, /register and /revoke.

First add a user: ``millstream users add ada --scope myscope --scope myotherscope``. Then ``python server.py``.
"""

import argparse

from millstream import Context, Server, auth


# region: server
def make(url: str, users: str = "users.json") -> Server:
    """The server at this URL. Every caller needs `myscope`; one of the tools needs more."""
    issuer = auth.issuer(
        url,
        users=auth.users(file=users),
        scopes=["myscope"],
        scope_descriptions={"myscope": "use My App", "myotherscope": "read the secret"},
    )
    mcp = Server("My App", version="1.0.0", auth=issuer)

    @mcp.tool
    async def who_am_i(ctx: Context) -> str:
        """Tell who has signed in, and what they may do."""
        who = ctx.principal
        return f"{who.subject}: {' '.join(sorted(who.scopes))}" if who is not None else "a guest"

    @mcp.tool(scopes=["myotherscope"])
    async def secret() -> str:
        """Read the secret, with a token that has `myotherscope`."""
        return "The cake is real."

    return mcp


# endregion


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="A server that gives out its own tokens.")
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--users", default="users.json", help="the file of `millstream users`")
    chosen = options.parse_args()
    make(f"http://127.0.0.1:{chosen.port}", chosen.users).run("http", port=chosen.port)
