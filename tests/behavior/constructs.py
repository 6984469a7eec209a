"""A server whose tools combine questions with usual Python constructs, each in a coroutine function and in a thread.

A tool notes what it does. `journal` returns the notes of a tag, also from another process.
"""

import asyncio
import itertools
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any

from millstream import Context, Declined, Depends, Elicit, Sample, Server, Settings, SyncContext, ToolError
from millstream.middleware import Middleware, Request

NOTES: dict[str, list[str]] = defaultdict(list)
SHOWN: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
SHOPPER: ContextVar[str] = ContextVar("shopper", default="nobody")
TASKS: set[asyncio.Task[None]] = set()
COUNTER = itertools.count()


class Journal(Middleware):
    """Notes what it wraps, and sets a context variable."""

    async def on_call(self, request: Request, next: Callable[[Request], Awaitable[Any]]) -> Any:
        """Note the call before and after."""
        tag = request.arguments.get("tag", "")
        NOTES[tag].append("enter")
        token = SHOPPER.set(tag)
        try:
            return await next(request)
        except ToolError as exc:
            NOTES[tag].append(f"failed: {exc}")
            raise
        finally:
            NOTES[tag].append("leave")
            with suppress(ValueError):
                SHOPPER.reset(token)


mcp = Server("constructs", middleware=[Journal()], settings=Settings(secret_key="k" * 40))


@mcp.tool
def journal(of: str) -> list[str]:
    """Return the notes of a tag."""
    return NOTES[of]


@mcp.tool
async def go(of: str) -> None:
    """Tell the function of a tag that its question has been shown."""
    SHOWN[of].set()


async def open_async() -> AsyncIterator[str]:
    """Open something, and close it by its outcome."""
    tag = SHOPPER.get()
    NOTES[tag].append("open")
    try:
        yield "handle"
    except BaseException as exc:
        NOTES[tag].append(f"roll back: {type(exc).__name__}")
        raise
    else:
        NOTES[tag].append("commit")
    finally:
        NOTES[tag].append("close")


def open_sync() -> Iterator[str]:
    """Open something in a thread."""
    tag = SHOPPER.get()
    NOTES[tag].append("open")
    try:
        yield "handle"
    except BaseException as exc:
        NOTES[tag].append(f"roll back: {type(exc).__name__}")
        raise
    else:
        NOTES[tag].append("commit")
    finally:
        NOTES[tag].append("close")


async def asks(ctx: Context, handle: Annotated[str, Depends(open_async)]) -> AsyncIterator[str]:
    """Ask in a dependency of a dependency."""
    tag = SHOPPER.get()
    yield f"{handle} {await ctx.elicit('Which?', str)}"
    NOTES[tag].append("done")


@mcp.tool
async def dependencies(
    tag: str,
    ctx: Context,
    handle: Annotated[str, Depends(open_async)],
    other: Annotated[str, Depends(open_sync)],
    asked: Annotated[str, Depends(asks)],
) -> str:
    """Hold dependencies across questions."""
    NOTES[tag].append("body")
    return f"{handle} {other} {asked} {await ctx.elicit('One?', str)}"


@mcp.tool
async def rolls_back(tag: str, ctx: Context, handle: Annotated[str, Depends(open_async)]) -> str:
    """Fail after a question."""
    await ctx.elicit("One?", str)
    raise ToolError("No stock.")


@mcp.tool
def rolls_back_sync(tag: str, ctx: SyncContext, handle: Annotated[str, Depends(open_sync)]) -> str:
    """Fail after a question, in a thread."""
    ctx.elicit("One?", str)
    raise ToolError("No stock.")


@mcp.tool
async def breaks(tag: str, ctx: Context, handle: Annotated[str, Depends(open_async)]) -> str:
    """Have a bug after a question."""
    await ctx.elicit("One?", str)
    raise KeyError("bug")


@mcp.tool
async def gathers(tag: str, ctx: Context) -> str:
    """Ask two questions at the same time."""
    NOTES[tag].append("start")
    one, two = await asyncio.gather(ctx.elicit("One?", str), ctx.elicit("Two?", str))
    NOTES[tag].append("both")
    return f"{one} {two} {await ctx.elicit('Three?', str)}"


@mcp.tool
async def gathers_late(tag: str, ctx: Context) -> str:
    """Ask a second question while the first one is open."""

    async def later() -> str:
        await SHOWN[tag].wait()
        NOTES[tag].append("moved")
        return await ctx.elicit("Two?", str)

    return " ".join(await asyncio.gather(ctx.elicit("slow", str), later()))


@mcp.tool
async def groups(tag: str, ctx: Context) -> str:
    """Work in the background while a question is open."""
    done = asyncio.Event()

    async def work() -> str:
        NOTES[tag].append("work")
        await done.wait()
        return "worked"

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        one = group.create_task(ctx.elicit("One?", str))
        await one
        done.set()
    return f"{one.result()} {working.result()}"


@mcp.tool
async def group_fails(tag: str, ctx: Context) -> str:
    """Fail in the background while a question is open."""

    async def fail() -> None:
        await SHOWN[tag].wait()
        raise ToolError("The background failed.")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await ctx.elicit("slow", str)
    except* ToolError as exc:
        NOTES[tag] += [str(exc.exceptions[0]), "moved"]
    return "group ended"


@mcp.tool
async def group_declined(tag: str, ctx: Context) -> str:
    """Ask two questions in a group, one of which a person declines."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.elicit("decline", str))
            group.create_task(ctx.elicit("Two?", str))
    except* Declined:
        NOTES[tag].append("declined")
    return await ctx.elicit("Next?", str)


@mcp.tool
async def times_out(tag: str, ctx: Context) -> str:
    """Don't wait long for an answer, and ask something else."""
    try:
        async with asyncio.timeout(None) as limit:
            hurry(tag, limit)
            await ctx.elicit("slow", str)
    except TimeoutError:
        NOTES[tag] += ["late", "moved"]
        return f"too late, {await ctx.elicit('Next?', str)}"
    return "in time"


def hurry(tag: str, limit: asyncio.Timeout) -> None:
    """Let a time limit expire once the question has been shown."""

    async def expire() -> None:
        await SHOWN[tag].wait()
        limit.reschedule(0)

    TASKS.add(task := asyncio.get_running_loop().create_task(expire()))
    task.add_done_callback(TASKS.discard)


@mcp.tool
async def gives_up(tag: str, ctx: Context) -> str:
    """Leave a question behind."""
    try:
        async with asyncio.timeout(None) as limit:
            hurry(tag, limit)
            await ctx.elicit("slow", str)
    except TimeoutError:
        NOTES[tag].append("moved")
    return "too late"


@mcp.tool
async def shields(tag: str, ctx: Context) -> str:
    """Stop waiting for a question, but not the question."""
    asking = asyncio.ensure_future(ctx.elicit("slow", str))
    try:
        async with asyncio.timeout(None) as limit:
            hurry(tag, limit)
            await asyncio.shield(asking)
    except TimeoutError:
        NOTES[tag].append("moved")
    return await asking


@mcp.tool
async def cancels(tag: str, ctx: Context) -> str:
    """Cancel a question."""
    asking = asyncio.ensure_future(ctx.elicit("slow", str))
    await SHOWN[tag].wait()
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    NOTES[tag].append("moved")
    return await ctx.elicit("Next?", str)


@mcp.tool
async def in_time(tag: str, ctx: Context) -> str:
    """Ask inside a time limit that isn't reached."""
    async with asyncio.timeout(60) as limit:
        one = await ctx.elicit("One?", str)
        limit.reschedule(asyncio.get_running_loop().time() + 60)
        two = await asyncio.wait_for(ctx.elicit("Two?", str), 60)
    return one + two


@mcp.tool
async def context(tag: str, ctx: Context) -> str:
    """Keep context variables and the task."""
    before, task = SHOPPER.get(), asyncio.current_task()
    token = SHOPPER.set(f"{before}, inside")
    one = await ctx.elicit("One?", str)
    inside = SHOPPER.get()
    SHOPPER.reset(token)
    return f"{one}; {inside}; {SHOPPER.get()}; {task is asyncio.current_task()}"


@mcp.tool
def context_sync(tag: str, ctx: SyncContext) -> str:
    """Keep context variables and the thread."""
    before, thread = SHOPPER.get(), threading.current_thread()
    token = SHOPPER.set(f"{before}, inside")
    one = ctx.elicit("One?", str)
    inside = SHOPPER.get()
    SHOPPER.reset(token)
    return f"{one}; {inside}; {SHOPPER.get()}; {thread is threading.current_thread()}"


@mcp.tool
async def reports(tag: str, ctx: Context) -> str:
    """Report progress and log around questions."""
    await ctx.progress(1, 3, "first")
    await ctx.info("first")
    one = await ctx.elicit("One?", str)
    await ctx.progress(2, 3, "second")
    await ctx.warning({"at": "second"})
    two = await ctx.elicit("Two?", str)
    await ctx.progress(3, 3, "third")
    await ctx.error("third")
    return one + two


@mcp.tool
def reports_sync(tag: str, ctx: SyncContext) -> str:
    """Report progress and log around questions, in a thread."""
    ctx.progress(1, 3, "first")
    ctx.info("first")
    one = ctx.elicit("One?", str)
    ctx.progress(2, 3, "second")
    ctx.warning({"at": "second"})
    two = ctx.elicit("Two?", str)
    ctx.progress(3, 3, "third")
    ctx.error("third")
    return one + two


@mcp.tool
async def reports_meanwhile(tag: str, ctx: Context) -> str:
    """Report progress and log while a question is open."""

    async def work() -> None:
        await SHOWN[tag].wait()
        await ctx.progress(1, 2, "meanwhile")
        await ctx.info("meanwhile")
        NOTES[tag].append("moved")

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        one = await ctx.elicit("slow", str)
    await ctx.progress(2, 2, "end")
    return one


@mcp.tool(task="allowed")
async def tasks(tag: str, ctx: Context) -> str:
    """Run as a task for clients that have them."""
    NOTES[tag].append("start")
    one = await ctx.elicit("One?", str)
    two = await ctx.elicit("Two?", str)
    NOTES[tag].append("end")
    return one + two


@mcp.tool(task="allowed")
def tasks_sync(tag: str, ctx: SyncContext) -> str:
    """Run as a task, in a thread."""
    NOTES[tag].append("start")
    one = ctx.elicit("One?", str)
    two = ctx.elicit("Two?", str)
    NOTES[tag].append("end")
    return one + two


@mcp.resource("shelf://{tag}/{book}")
async def shelf(tag: str, book: str, ctx: Context) -> str:
    """A resource that asks."""
    NOTES[tag].append(f"read {book}")
    return f"{book} {await ctx.elicit(f'Which {book}?', str)}"


@mcp.resource("box://{tag}")
def box(tag: str, ctx: SyncContext) -> str:
    """A resource that reads another one, and asks."""
    NOTES[tag].append("read box")
    return f"{ctx.read_resource(f'shelf://{tag}/inner')} {ctx.elicit('Box?', str)}"


@mcp.tool
async def reads(tag: str, ctx: Context) -> str:
    """Read resources that ask."""
    NOTES[tag].append("start")
    one = await ctx.read_resource(f"shelf://{tag}/a")
    two = await ctx.read_resource(f"box://{tag}")
    return f"{one} {two} {await ctx.elicit('Last?', str)}"


@mcp.tool
def reads_sync(tag: str, ctx: SyncContext) -> str:
    """Read resources that ask, in a thread."""
    NOTES[tag].append("start")
    one = ctx.read_resource(f"shelf://{tag}/a")
    two = ctx.read_resource(f"box://{tag}")
    return f"{one} {two} {ctx.elicit('Last?', str)}"


@mcp.tool
async def changes(tag: str, ctx: Context) -> str:
    """Ask something else each time."""
    NOTES[tag].append("start")
    one = await ctx.elicit(f"change {next(COUNTER)}", str)
    two = await ctx.elicit(f"change {next(COUNTER)}", str)
    return one + two


@mcp.tool
def changes_sync(tag: str, ctx: SyncContext) -> str:
    """Ask something else each time, in a thread."""
    NOTES[tag].append("start")
    one = ctx.elicit(f"change {next(COUNTER)}", str)
    two = ctx.elicit(f"change {next(COUNTER)}", str)
    return one + two


@asynccontextmanager
async def held(tag: str, name: str) -> AsyncIterator[None]:
    """Note when something is held."""
    NOTES[tag].append(f"take {name}")
    try:
        yield
    finally:
        NOTES[tag].append(f"give {name}")


@contextmanager
def held_sync(tag: str, name: str) -> Iterator[None]:
    """Note when something is held."""
    NOTES[tag].append(f"take {name}")
    try:
        yield
    finally:
        NOTES[tag].append(f"give {name}")


@mcp.tool
async def cleans_up(tag: str, ctx: Context) -> str:
    """Clean up after a person declined."""
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(held(tag, "one"))
            await ctx.elicit("One?", str)
            await stack.enter_async_context(held(tag, "two"))
            await ctx.elicit("decline", str)
    except Declined:
        NOTES[tag].append("declined")
        again = await ctx.elicit("Again?", str)
        return f"declined {again}"
    finally:
        NOTES[tag].append("finally")
        await asyncio.sleep(0)
        NOTES[tag].append("cleaned")
    return "never"


@mcp.tool
def cleans_up_sync(tag: str, ctx: SyncContext) -> str:
    """Clean up after a person declined, in a thread."""
    try:
        with ExitStack() as stack:
            stack.enter_context(held_sync(tag, "one"))
            ctx.elicit("One?", str)
            stack.enter_context(held_sync(tag, "two"))
            ctx.elicit("decline", str)
    except Declined:
        NOTES[tag].append("declined")
        again = ctx.elicit("Again?", str)
        return f"declined {again}"
    finally:
        NOTES[tag].append("finally")
    return "never"


@mcp.tool
async def asks_in_finally(tag: str, ctx: Context) -> str:
    """Ask while an error is on its way."""
    try:
        await ctx.elicit("One?", str)
        raise ToolError("No stock.")
    finally:
        NOTES[tag].append(await ctx.elicit("Sure?", str))


@mcp.tool
def asks_in_finally_sync(tag: str, ctx: SyncContext) -> str:
    """Ask while an error is on its way, in a thread."""
    try:
        ctx.elicit("One?", str)
        raise ToolError("No stock.")
    finally:
        NOTES[tag].append(ctx.elicit("Sure?", str))


@mcp.tool
async def declined(tag: str, ctx: Context) -> str:
    """Fail when a person declines."""
    async with held(tag, "one"):
        return await ctx.elicit("decline", str)


@mcp.tool
def cancels_sync(tag: str, ctx: SyncContext) -> str:
    """Fail when a person cancels."""
    with held_sync(tag, "one"):
        return ctx.elicit("cancel", str)


@mcp.tool
async def repeats(tag: str, ctx: Context) -> str:
    """Ask the same until the answer is right."""
    for number in range(5):
        NOTES[tag].append(f"try {number}")
        if await ctx.elicit("guess", int) == 2:
            return f"after {number}"
    return "never"


@mcp.tool
async def background(tag: str, ctx: Context) -> str:
    """Start a task before the question, and await it after."""
    started = asyncio.Event()

    async def work() -> str:
        NOTES[tag].append("work")
        started.set()
        return SHOPPER.get()

    task = asyncio.get_running_loop().create_task(work())
    one = await ctx.elicit("One?", str)
    await started.wait()
    return f"{one} {await task}"


@mcp.tool
async def threads(tag: str, ctx: Context) -> str:
    """Ask between two steps in threads."""
    lock = asyncio.Lock()
    async with lock:
        one = await asyncio.to_thread(SHOPPER.get)
        two = await ctx.elicit("One?", str)
    return f"{one} {two} {await asyncio.to_thread(SHOPPER.get)} {lock.locked()}"


@mcp.tool
async def many(tag: str, ctx: Context) -> str:
    """Ask a person and a model together."""
    found = await ctx.ask(name=Elicit("One?", str), words=Sample("Words?", max_tokens=9))
    receipt = await ctx.once("pay", lambda: NOTES[tag].append("pay"))
    return f"{found['name']} {found['words'].text} {receipt} {await ctx.elicit('Two?', str)}"


@mcp.tool
async def mutates(tag: str, items: list[str], ctx: Context) -> list[str]:
    """Change an argument before a question."""
    items.append("before")
    items.append(await ctx.elicit("One?", str))
    return items


@mcp.tool
async def lacks(tag: str, ctx: Context) -> str:
    """Ask what the client can't answer."""
    try:
        await ctx.roots()
    except ToolError:
        return await ctx.elicit("Where?", str)
    return "never"


@mcp.tool
async def same(tag: str, ctx: Context) -> str:
    """Ask the same question several times."""
    first = await ctx.elicit("guess", int)
    return f"{first} {await asyncio.gather(ctx.elicit('guess', int), ctx.elicit('guess', int))}"


@mcp.tool
async def state(tag: str, ctx: Context) -> str:
    """Keep what the context has."""
    ctx.state["one"] = await ctx.elicit("One?", str)
    return f"{ctx.state} {await ctx.once('pay', lambda: 'paid', store=True)} {await ctx.elicit('Two?', str)}"


@mcp.tool(replay=True)
async def repeatable(tag: str, ctx: Context) -> str:
    """May run again, but needn't."""
    NOTES[tag].append("start")
    return await ctx.elicit("One?", str) + await ctx.elicit("Two?", str)


class Asking(Middleware):
    """Asks around a call, and calls again after a failure."""

    async def on_call(self, request: Request, next: Callable[[Request], Awaitable[Any]]) -> Any:
        """Ask before and after."""
        before = await request.context.elicit("Before?", str)
        try:
            async with asyncio.timeout(60):
                inside = await next(request)
        except ToolError:
            inside = await next(request)
        return f"{before} {inside} {await request.context.elicit('After?', str)}"


other = Server("other", middleware=[Asking()])


@other.tool
async def wrapped(tag: str, ctx: Context) -> str:
    """Fail once."""
    NOTES[tag].append("body")
    value = await ctx.elicit("One?", str)
    if NOTES[tag].count("body") < 2:
        raise ToolError("Again.")
    return value


@other.tool
def quiet(tag: str) -> str:
    """Don't ask."""
    NOTES[tag].append("body")
    return "quiet"


mcp.mount(other, prefix="other")


@mcp.prompt
async def topic(tag: str, ctx: Context) -> str:
    """Ask in a prompt."""
    NOTES[tag].append("start")
    return f"About {await ctx.elicit('One?', str)} and {await ctx.elicit('Two?', str)}"
