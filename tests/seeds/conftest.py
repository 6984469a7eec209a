"""The example that the seeds' commands are run against."""

from collections.abc import Iterator

import pytest

from processes import free_port, millstream, serving


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`examples/hub.py`, started as `make run` starts it; its port."""
    port = free_port()
    with serving(millstream("examples/hub.py", port), port, tmp_path_factory.mktemp("hub") / "log"):
        yield port
