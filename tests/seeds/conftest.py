"""The example that the seeds' commands run against."""

from collections.abc import Iterator
from functools import partial

import pytest

from processes import SharedServer, run_command, share_server


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`examples/hub.py`, started like `make run` does."""
    with share_server(partial(run_command, "examples/hub.py"), tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(shared_hub: SharedServer) -> int:
    """The port of the hub."""
    return shared_hub.port()
