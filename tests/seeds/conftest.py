"""The example that the seeds' commands are run against."""

from collections.abc import Iterator
from functools import partial

import pytest

from processes import Shared, millstream, shared


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """`examples/hub.py`, started as `make run` starts it."""
    with shared(partial(millstream, "examples/hub.py"), tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(shared_hub: Shared) -> int:
    """The port of the hub."""
    return shared_hub.port()
