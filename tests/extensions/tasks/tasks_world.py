"""A client of tasks that reads raw messages, for one server or several workers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from millstream._protocol.metadata import TASKS
from patience import WAIT
from wire import Json, per_request, routing

DECLARED: Json = {"extensions": {TASKS: {}}, "elicitation": {"form": {}}}
FINAL_STATUSES = ("completed", "failed", "cancelled")

Ask = Callable[[str, Json, dict[str, str]], Awaitable[Json]]
"""Sends a request and returns the complete response."""


class TaskClient:
    """A client that calls tools as tasks."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def response(self, method: str, params: Json, declared: Json | None = None) -> Json:
        """Return the response to a request."""
        message = per_request(method, params, **(DECLARED if declared is None else declared))
        name = params.get("taskId", params.get("name", ""))
        return await self._ask(method, message["params"], routing(method, name))

    async def result(self, method: str, params: Json) -> Json:
        """Return the result of a request."""
        response = await self.response(method, params)
        assert "result" in response, response
        result: Json = response["result"]
        return result

    async def call(self, tool: str, **arguments: Any) -> Json:
        """Call a tool and return the new task."""
        task = await self.result("tools/call", {"name": tool, "arguments": arguments})
        assert task["resultType"] == "task", task
        return task

    async def get(self, task_id: str) -> Json:
        """Return the current state of a task."""
        return await self.result("tasks/get", {"taskId": task_id})

    async def update(self, task_id: str, **answers: Json) -> Json:
        """Answer the questions of a task."""
        return await self.result("tasks/update", {"taskId": task_id, "inputResponses": answers})

    async def cancel(self, task_id: str) -> Json:
        """Cancel a task."""
        return await self.result("tasks/cancel", {"taskId": task_id})

    async def wait_until(self, task_id: str, fact: Callable[[Json], bool]) -> Json:
        """Poll a task until a condition holds."""
        async with asyncio.timeout(WAIT):
            while True:
                task = await self.get(task_id)
                if fact(task):
                    return task
                await asyncio.sleep(0.001)

    async def wait_for_end(self, task_id: str) -> Json:
        """Poll a task until it has ended."""
        return await self.wait_until(task_id, lambda task: task["status"] in FINAL_STATUSES)

    async def retry_until_accepted(self, method: str, params: Json, *, refused: bool = False) -> Json:
        """Repeat a request until it's accepted, or with `refused`, until it's refused. Return the response."""
        async with asyncio.timeout(WAIT):
            while True:
                response = await self.response(method, params)
                if ("error" in response) is refused:
                    return response
                await asyncio.sleep(0.001)

    async def wait_for_questions(self, task_id: str) -> Json:
        """Poll a task until it asks, and return its questions."""
        task = await self.wait_until(task_id, lambda task: task["status"] in ("input_required", *FINAL_STATUSES))
        requests: Json = task["inputRequests"]
        return requests


def accept(**content: Any) -> Json:
    """Return an accepted answer."""
    return {"action": "accept", "content": content}


def text(task: Json) -> str:
    """Return the text of a task's result."""
    return str(task["result"]["content"][0]["text"])
