"""Tools that use the client's model. ``millstream dev summaries.py``."""

# region: sample
from typing import Any

from millstream import Context, Message, Server, Text, ToolError, ToolResultBlock, ToolUse

mcp = Server("summaries")

REVIEWS = [
    "Arrived late, but the book is lovely.",
    "Two pages are missing.",
    "My daughter reads it every evening.",
]


@mcp.tool(requires={"sampling": {}})
async def summarize_reviews(ctx: Context) -> str:
    """Summarize what readers say."""
    request = "Summarize in one sentence:\n\n" + "\n".join(REVIEWS)
    answer = await ctx.sample(request, max_tokens=100)
    return answer.text


# endregion


# region: options
@mcp.tool(requires={"sampling": {}})
async def classify_review(review: str, ctx: Context) -> str:
    """Say whether a review is good or bad."""
    answer = await ctx.sample(
        [
            Message("user", "The cover is torn."),
            Message("assistant", "bad"),
            Message("user", review),
        ],
        system="Answer with one word: good or bad.",
        max_tokens=5,
        temperature=0,
        preferences={"hints": [{"name": "haiku"}], "speedPriority": 1},
    )
    word = answer.text.strip().lower()
    if word not in ("good", "bad"):
        raise ToolError(f"The model answered {word!r}. Read the review yourself.")
    return word


# endregion


# region: fallback
@mcp.tool
async def shorten(text: str, ctx: Context) -> str:
    """Shorten text, by a model if the client has one."""
    if "sampling" not in ctx.client.capabilities:
        return f"{text[:200]}…"
    return (await ctx.sample(f"Shorten to one sentence:\n\n{text}")).text


# endregion


# region: tools
LOOK_UP = {
    "name": "look_up",
    "description": "Look up the reviews with a word in them.",
    "inputSchema": {
        "type": "object",
        "properties": {"word": {"type": "string"}},
        "required": ["word"],
    },
}


def look_up(word: str) -> list[Any]:
    """Run the model's tool."""
    return [Text(review) for review in REVIEWS if word in review]


@mcp.tool(requires={"sampling": {"tools": {}}})
async def answer(question: str, ctx: Context) -> str:
    """Answer a question about the reviews."""
    messages: list[Message | str] = [question]
    for _ in range(5):
        reply = await ctx.sample(messages, tools=[LOOK_UP])
        content: Any = reply.content
        assistant = Message("assistant", content)
        uses = [block for block in assistant.blocks if isinstance(block, ToolUse)]
        if not uses:
            return reply.text
        results: list[Any] = [ToolResultBlock(use.id, look_up(use.input["word"])) for use in uses]
        messages += [assistant, Message("user", results)]
    raise ToolError("The model needed too many look-ups. Ask a narrower question.")


# endregion

if __name__ == "__main__":
    mcp.run()
