"""The examples of the guides about protecting and running a server."""

from pathlib import Path

from auth_world import make_server, run_guarded
from examples import keyed
from millstream.auth._key_file import KeyFile
from wire import request


async def test_named_keys_have_their_scopes() -> None:
    async with run_guarded(make_server(keyed.named())) as world:
        assert (await world.call(keyed.DESK_KEY, "who")).message["result"]["content"][0]["text"] == "desk"
        assert (await world.call(keyed.ROBOT_KEY, "who")).message["result"]["content"][0]["text"] == "robot"
        assert (await world.call("another", "who")).status == 403


async def test_keys_in_a_file_and_in_code_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    in_file = KeyFile(path).add("ada", (), 0.0, None)
    server = keyed.from_file(str(path))
    async with run_guarded(server) as world:
        for key, status in ((in_file, 200), (keyed.DESK_KEY, 200), ("another", 403)):
            assert (await world.post(key, request("ping"))).status == status
