"""Middleware: what happens around every call, written once."""

# region: timing
import logging
import time

from millstream import Server, ToolError
from millstream.middleware import ListRequest, MessageRequest, Middleware, Next, Request
from millstream.protocol import Json

logger = logging.getLogger("shop")


class Timing(Middleware):
    async def on_call(self, request: Request, next: Next) -> object:
        started = time.perf_counter()
        try:
            return await next(request)
        finally:
            seconds = time.perf_counter() - started
            logger.info("%s took %.1f ms", request.name, 1000 * seconds)


mcp = Server("shop", middleware=[Timing()])


@mcp.tool
async def order(isbn: str, copies: int = 1) -> str:
    """Order copies of a book."""
    return f"{copies} of {isbn}"


# endregion


# region: changing
class OpeningHours(Middleware):
    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open

    async def on_call(self, request: Request, next: Next) -> object:
        if not self.is_open:
            raise ToolError("The shop is closed. Try again tomorrow.")
        request.arguments["isbn"] = request.arguments["isbn"].replace("-", "")
        return f"Thank you! {await next(request)}"

    async def on_list(self, request: ListRequest, next: Next) -> list[Json]:
        items = await next(request)
        return [item for item in items if not item["name"].startswith("_")]


# endregion


# region: translate
class Translate(Middleware):
    async def on_call(self, request: Request, next: Next) -> object:
        try:
            return await next(request)
        except (TimeoutError, ConnectionError) as error:
            raise ToolError("The warehouse doesn't respond. Try again later.") from error


# endregion


# region: message
class Audit(Middleware):
    async def on_message(self, request: MessageRequest, next: Next) -> Json:
        request.context.state["asked_at"] = time.time()
        try:
            result: Json = await next(request)
            return result
        except Exception as error:
            logger.warning("%s failed: %s", request.method, error)
            raise


# endregion

if __name__ == "__main__":
    mcp.run()
