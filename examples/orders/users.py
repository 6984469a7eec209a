"""The user service: who may order."""

from millstream import Server, ToolError

mcp = Server("users")
NAMES = {"ada": "Ada Lovelace", "grace": "Grace Hopper"}


@mcp.tool
def get_user(user: str) -> dict[str, str]:
    """Return a user's name."""
    if user not in NAMES:
        raise ToolError(f"There is no user {user!r}. There are {', '.join(NAMES)}.")
    return {"user": user, "name": NAMES[user]}


if __name__ == "__main__":
    mcp.run(transport="http")
