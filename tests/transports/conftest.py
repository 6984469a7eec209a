"""Run the tests of the HTTP adapters on asyncio and uvloop, and the others only on asyncio."""

import asyncio
import sys
from collections.abc import Callable, Mapping

import pytest

_ON_BOTH = ("test_guard", "test_http_parity")

_BOTH: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if sys.platform != "win32":
    import uvloop

    _BOTH["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Add uvloop for the modules that test sockets."""
    return _BOTH if item.path.name.startswith(_ON_BOTH) else {"asyncio": asyncio.new_event_loop}
