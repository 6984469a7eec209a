"""A tool that reads the calendar of whoever signed in. Set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET."""

import os

# region: server
from typing import Annotated, Any

import httpx2

from millstream import Depends, Server, ToolError, auth

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")
CALENDAR = "https://www.googleapis.com/calendar/v3/calendars/primary/events"

mcp = Server(
    "Calendar",
    auth=auth.google(
        URL,
        allow=["@example.com"],
        token_scopes=["https://www.googleapis.com/auth/calendar.readonly"],
    ),
)


@mcp.tool
async def next_events(token: Annotated[auth.ProviderToken, Depends(auth.provider_token)]) -> list[str]:
    """List your next events."""
    async with httpx2.AsyncClient() as http:
        reply = await http.get(CALENDAR, headers={"Authorization": f"Bearer {token.access_token}"})
    if reply.status_code == 403:
        raise ToolError("You haven't allowed this server to read your calendar. Connect it again.")
    items: list[dict[str, Any]] = reply.raise_for_status().json()["items"]
    return [str(each.get("summary", "")) for each in items]


# endregion

if __name__ == "__main__":
    mcp.run()
