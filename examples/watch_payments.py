"""A program that waits for the events of `events.py`: ``python watch_payments.py``."""

import asyncio

from millstream import Client


async def watch(url: str, customer: str) -> None:
    """Print the payments of a customer as they arrive."""
    async with Client(url) as client, client.events.subscribe("order.paid", {"customer": customer}) as payments:
        print(f"Waiting for payments by {customer}", flush=True)
        async for event in payments:
            print(f"{event.data['order']} is paid: {event.data['total']}", flush=True)


if __name__ == "__main__":
    asyncio.run(watch("http://127.0.0.1:8000/mcp", "ada"))
