"""A planner: prompts with arguments, conversations, and completion. ``millstream dev planner.py``."""

# region: prompt
from typing import Annotated, Literal

from millstream import Field, Message, Server

mcp = Server("planner")

TASKS = {"Monday": ["Buy milk"], "Tuesday": ["Call Ada", "Pay the rent"]}


@mcp.prompt
def plan(
    day: Annotated[str, Field(description="A weekday")],
    mood: Literal["calm", "busy"] = "calm",
) -> str:
    """Plan a day by its tasks."""
    tasks = ", ".join(TASKS.get(day, [])) or "nothing yet"
    return f"Plan my {day} for a {mood} mood. My tasks: {tasks}."


# endregion


# region: conversation
@mcp.prompt(title="Review the week")
def review() -> list[Message]:
    """Look back at the week, one question at a time."""
    week = "\n".join(f"{day}: {', '.join(tasks)}" for day, tasks in TASKS.items())
    return [
        Message("user", f"These were my tasks:\n{week}"),
        Message("assistant", "I've read them. What would you like to know?"),
        Message("user", "Ask me one question about each day."),
    ]


# endregion


# region: complete
@mcp.complete("plan", argument="day")
async def days(value: str, arguments: dict[str, str]) -> list[str]:
    """Days that begin with what the person typed."""
    return [day for day in TASKS if day.lower().startswith(value.lower())]


# endregion

if __name__ == "__main__":
    mcp.run()
