"""How long a stop may take."""

from typing import Any

import pytest
import uvicorn

from millstream import Server, Settings
from millstream._app.serving import uvicorn_server


@pytest.mark.parametrize("drain", [0.5, 30.0])
def test_the_grace_time_is_given_once(monkeypatch: pytest.MonkeyPatch, drain: float) -> None:
    """Fixed: our drain had all of it, then uvicorn the same again, which is longer than supervisors wait."""
    seen: list[uvicorn.Config] = []

    def run(self: Any, sockets: object = None) -> None:
        seen.append(self.config)

    monkeypatch.setattr(uvicorn_server._Uvicorn, "run", run)
    uvicorn_server.serve(Server("shop", settings=Settings(drain_timeout=drain)))
    assert [config.timeout_graceful_shutdown for config in seen] == [uvicorn_server.AFTER_DRAIN]
