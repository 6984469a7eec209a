import asyncio
import json
import stat
from pathlib import Path

import pytest

from auth_world import ALICE, BOB, STREAM, GuardedServer, make_server, run_guarded
from cases import for_each
from millstream import auth
from millstream._protocol.errors import LocalError
from millstream._server.calls.vault import digest
from millstream.auth._key_file import PREFIX, KeyFile, KeyMethod
from millstream.auth._method import Rejection
from wire import Reply, request

PING = request("ping", id=5)


@pytest.fixture
def kept(tmp_path: Path) -> KeyFile:
    """Return a key file with one key."""
    file = KeyFile(tmp_path / "keys.json")
    file.add("first", (), 0.0, None)
    return file


def test_keys_are_stored_as_hashes_in_an_owner_only_file(kept: KeyFile) -> None:
    key = kept.add("ci", ("orders:write",), 1.0, 2.0)
    text = kept.path.read_text("utf-8")
    assert key.startswith(PREFIX)
    assert len(key) >= 43
    assert key not in text
    assert key[len(PREFIX) :] not in text
    assert digest(key) in text
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600


def test_generated_keys_are_unique(kept: KeyFile) -> None:
    assert len({kept.add(f"k{number}", (), 0.0, None) for number in range(50)}) == 50


@for_each(
    ("name", "scopes", "reason"),
    [
        *((name, (), "name") for name in ["", " ", "a b", "a\n", "../x", "é", "x" * 65, "-x"]),  # for a log
        *(("x", (scope,), "scope") for scope in ["", "a b", 'a"b', "a\\b", "é", "a\r\nx: y"]),  # RFC 6749 §3.3
    ],
)
def test_key_names_and_scopes_that_would_break_a_log_or_challenge_are_rejected(
    kept: KeyFile, name: str, scopes: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        kept.add(name, scopes, 0.0, None)


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = KeyFile(path), KeyFile(path)
    first.add("one", (), 0.0, None)
    second.add("two", (), 0.0, None)
    first.remove("one")
    first.load()
    assert [each.name for each in first.records] == ["two"]


def test_paths_and_short_keys_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys-of-our-shop").touch()
    for value in ("config/production/keys.json", "keys-of-our-shop", "k" * 15):
        for options in ({"given": value}, {"named_keys": {"desk": value}}, {"named_keys": {"desk": (value, ["a"])}}):
            with pytest.raises(ValueError, match=r"auth\.keys\(file=…\)"):
                auth.keys(value) if "given" in options else auth.keys(**options)  # type: ignore[arg-type]
    auth.keys("k" * 16, "x" * 5000, named_keys={"desk": "sha256/abc.jsonp+/AAA"})


@for_each("mode", [0o620, 0o602, 0o666])
def test_key_files_writable_by_others_are_rejected(kept: KeyFile, mode: int) -> None:
    kept.path.chmod(mode)
    with pytest.raises(LocalError, match="chmod 600"):
        kept.load()


def test_key_and_user_files_readable_by_all_users_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, use in (("key", auth.keys), ("user", auth.users)):
        path = tmp_path / f"{kind}s.json"
        for mode, warns in ((0o600, False), (0o640, False), (0o644, True), (0o604, True)):
            caplog.clear()
            path.write_text(f'{{"{kind}s": []}}', "utf-8")
            path.chmod(mode)
            use(file=path)
            assert (f"All users on this machine can read {path}. Run: chmod o-r {path}" in caplog.text) is warns


@pytest.mark.parametrize("text", ["", "[]", "{", '{"keys":[{"name":1}]}', '{"keys":[],"more":1}'])
def test_invalid_key_files_are_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    with pytest.raises(LocalError, match=r"isn't a key file: .* `millstream keys add NAME` writes one"):
        auth.keys(file=path)
    with pytest.raises(LocalError, match="keys add"):
        auth.keys(file=tmp_path / "none.json")


async def test_expired_keys_are_rejected(tmp_path: Path) -> None:
    file, now = KeyFile(tmp_path / "keys.json"), [100.0]
    key = file.add("brief", (), 0.0, 200.0)
    method = KeyMethod((), KeyFile(file.path), clock=lambda: now[0])
    found = await method.identify(key)
    assert found is not None
    assert (found.principal.subject, found.seconds) == ("brief", 100.0)
    before = method.epoch()
    now[0] = 200.0
    assert await method.identify(key) is None
    assert method.epoch() != before
    assert not method.holds("brief")


async def test_keys_are_added_rotated_and_revoked_while_the_server_runs(kept: KeyFile) -> None:
    async with run_guarded(make_server(auth.keys(file=kept.path))) as world:
        guard = world.runtime.guard
        assert guard is not None
        key = kept.add("ci", (), 0.0, None)
        guard.refresh()
        session = await world.initialize(key)
        assert (await world.post(key, PING, mcp_session_id=session)).status == 200
        new = kept.rotate("ci", 0.0, 0.0)
        assert guard.refresh()
        assert (await world.post(key, PING, mcp_session_id=session)).status == 403
        assert (await world.post(new, PING, mcp_session_id=session)).status == 200
        kept.remove("ci")
        assert guard.refresh()
        assert (await world.post(new, PING, mcp_session_id=session)).status == 403


@for_each("change", ["add", "rotate"])
async def test_new_keys_work_at_once(kept: KeyFile, change: str) -> None:
    async with run_guarded(make_server(auth.keys(file=kept.path))) as world:
        new = kept.add("ci", (), 0.0, None) if change == "add" else kept.rotate("first", 0.0, 60.0)
        assert (await world.post(new, PING, mcp_session_id=await world.initialize(new))).status == 200


async def test_unknown_keys_read_the_file_ten_times_a_second_at_most(
    kept: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [100.0], list[float]()
    method = KeyMethod((), KeyFile(kept.path), clock=lambda: now[0])
    monkeypatch.setattr(method._file, "reload", lambda: looks.append(now[0]))
    for number in range(100):
        now[0] = 100 + number / 100
        assert isinstance(await method.examine(f"ms_{number}"), Rejection)
    assert 9 <= len(looks) <= 10


async def test_rotated_keys_work_only_during_their_grace_period(tmp_path: Path) -> None:
    file, now = KeyFile(tmp_path / "keys.json"), [0.0]
    old = file.add("ci", ("a",), 0.0, None)
    new = file.rotate("ci", 0.0, 60.0)
    method = KeyMethod((), KeyFile(file.path), clock=lambda: now[0])
    for key in (old, new):
        found = await method.identify(key)
        assert found is not None
        assert found.principal.scopes == {"a"}
    now[0] = 60.0
    assert await method.identify(old) is None
    assert await method.identify(new) is not None


@pytest.mark.parametrize("path", ["/events", "/mcp/sse/me", "/sse", "/mcp"])
async def test_revoking_a_key_ends_its_streams(kept: KeyFile, path: str) -> None:
    key, other = kept.add("ci", (), 0.0, None), kept.add("other", (), 0.0, None)
    async with run_guarded(make_server(auth.keys(file=kept.path))) as world:
        streams = []
        for each in (key, other):
            more = {"mcp_session_id": await world.initialize(each)} if path == "/mcp" else {}
            peer = await world.send(each, "GET", path, **STREAM, **more)
            assert (await peer.head())[0] == 200
            streams.append(peer)
        assert len(world.runtime.streams) == 2
        kept.remove("ci")
        while chunk := await streams[0].chunk():
            assert chunk
        assert len(world.runtime.streams) == 1


async def test_revoking_a_key_closes_its_websockets(kept: KeyFile) -> None:
    key = kept.add("ci", (), 0.0, None)
    async with run_guarded(make_server(auth.keys(file=kept.path))) as world, world.socket(key) as socket:
        await socket.recv()
        kept.remove("ci")
        await socket.wait_closed()


async def test_deleting_the_key_file_revokes_its_keys(kept: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    key = kept.add("ci", (), 0.0, None)
    saved = kept.path.read_bytes()
    async with run_guarded(make_server(auth.keys(file=kept.path))) as world:
        guard = world.runtime.guard
        assert guard is not None
        assert (await world.post(key, PING)).status == 200
        kept.path.unlink()
        assert guard.refresh()
        assert not guard.refresh()
        assert (await world.post(key, PING)).status == 403
        assert not guard.refresh()
        assert (await world.post(key, PING)).status == 403
        effect = f"The keys in a file don't work, because the file {kept.path} can't be used"
        [said] = [each.message for each in caplog.records if effect in each.message]
        assert "Create one: millstream keys add NAME" in said
        [trouble] = world.runtime.host.store.troubles.describe()
        assert trouble.what == effect
        assert trouble.count >= 3
        assert f"millstream keys list --file {kept.path}" in trouble.remedy
        kept.path.write_bytes(saved)
        kept.path.chmod(0o600)
        assert guard.refresh()
        assert (await world.post(key, PING)).status == 200
        assert world.runtime.host.store.troubles.describe() == []
        assert f"The file {kept.path} can be used again. It failed " in caplog.text


def test_key_file_that_comes_back_unchanged_is_read_again(kept: KeyFile) -> None:
    away = kept.path.with_name("away")
    kept.load()
    kept.path.rename(away)
    assert (kept.reload(), kept.records, kept.outage.lasts) == (True, (), True)
    away.rename(kept.path)
    assert (kept.reload(), [each.name for each in kept.records], kept.outage.lasts) == (True, ["first"], False)


async def test_revocation_reaches_both_event_loops(kept: KeyFile) -> None:
    key = kept.add("ci", (), 0.0, None)
    method = auth.keys(file=kept.path)
    async with run_guarded(make_server(method)) as one, run_guarded(make_server(method)) as two:
        for world in (one, two):
            assert (await world.post(key, PING)).status == 200
        kept.remove("ci")
        for world in (one, two):
            assert world.runtime.guard is not None
            assert world.runtime.guard.refresh()
            assert (await world.post(key, PING)).status == 403
        await asyncio.sleep(0)


def test_key_file_contains_only_required_members(kept: KeyFile) -> None:
    (first,) = json.loads(kept.path.read_text("utf-8"))["keys"]
    assert first.keys() == {"name", "hash", "created"}


KEY_HEADER = {"auth_key_header": "X-API-Key"}


async def ask(world: GuardedServer, key: str | None, **headers: str) -> Reply:
    """Call the tool that returns the caller."""
    return await world.ask(key, "POST", "/tools/who", b"{}", content_type="application/json", **headers)


async def test_keys_in_the_configured_header_are_accepted() -> None:
    async with run_guarded(make_server(**KEY_HEADER)) as world:
        for _ in range(2):
            assert (await ask(world, None, x_api_key=ALICE)).message["content"][0]["text"] == "alice"
        assert (await ask(world, ALICE)).message["content"][0]["text"] == "alice"
        assert (await ask(world, ALICE, x_api_key=ALICE)).message["content"][0]["text"] == "alice"
        assert (await ask(world, None, x_api_key=f"{BOB} ")).message["content"][0]["text"] == "bob"


async def test_different_key_next_to_a_bearer_token_is_rejected() -> None:
    async with run_guarded(make_server(**KEY_HEADER)) as world:
        assert (await ask(world, ALICE)).status == 200
        for key in (BOB, "wrong", "", f"Bearer {ALICE}"):
            assert (await ask(world, ALICE, x_api_key=key)).status == 400
        assert (await ask(world, None, authorization=f"bEARER  {BOB}", x_api_key=ALICE)).status == 400


OTHER_SCHEMES = ["Basic YWxpY2U6eA==", "Negotiate YII=", "DPoP abc", f"Basic {BOB}", f"Token {BOB}", BOB, "Basic", ""]


@for_each("value", OTHER_SCHEMES)
async def test_other_schemes_beside_the_key_header_are_ignored(value: str) -> None:
    """A proxy in front of the server may need the header for itself."""
    async with run_guarded(make_server(**KEY_HEADER)) as world:
        reply = await ask(world, None, authorization=value, x_api_key=ALICE)
        assert (reply.status, reply.message["content"][0]["text"]) == (200, "alice")
        assert (await ask(world, None, authorization=value, x_api_key="wrong")).status == 403
        assert (await ask(world, None, authorization=value)).status == 401
        async with world.socket(None, **{"Authorization": value, "X-API-Key": BOB}) as socket:
            await socket.recv()
            await socket.send('{"type":"mcp_call","tool":"who"}')
            assert "bob" in str(await socket.recv())
        peer = await world.running.connect()
        lines = f"authorization: {value}\r\nauthorization: {value}\r\nx-api-key: {ALICE}\r\n"
        await peer.send(f"POST /tools/who HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}content-length: 0\r\n\r\n".encode())
        assert (await peer.reply())[0] == 400
        peer.close()


async def test_key_headers_with_extra_text_are_rejected_with_a_fix() -> None:
    async with run_guarded(make_server(**KEY_HEADER)) as world:
        for key in (f"Bearer {ALICE}", "", f"{ALICE}, {BOB}"):
            reply = await ask(world, None, x_api_key=key)
            assert (reply.status, "The X-Api-Key header must have only" in reply.message["detail"]) == (400, True)
        reply = await ask(world, None, x_api_key="", authorization="Basic YWxpY2U6eA==")
        assert "The X-Api-Key header must have only" in reply.message["detail"]


async def test_repeated_key_headers_are_rejected() -> None:
    async with run_guarded(make_server(**KEY_HEADER)) as world:
        peer = await world.running.connect()
        for first, others, repeated in (
            ("x-api-key", "", "X-Api-Key"),
            ("authorization", "x-api-key", "Authorization"),
        ):
            lines = f"{others}: {ALICE}\r\n" if others else ""
            lines += f"{first}: {ALICE}\r\n" * 2
            head = f"POST /tools/who HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}content-length: 0\r\n\r\n"
            await peer.send(head.encode())
            status, _, body = await peer.reply()
            assert (status, f"The {repeated} header is repeated" in body.decode()) == (400, True)
        peer.close()


async def test_keys_in_other_headers_get_a_401_that_names_the_setting() -> None:
    for server, name in ((make_server(), "X-Api-Key"), (make_server(**KEY_HEADER), "Api-Key")):
        async with run_guarded(server) as world:
            reply = await ask(world, None, **{name.lower().replace("-", "_"): ALICE})
            assert reply.status == 401
            assert f"reads {name} only if it's set as `auth_key_header`" in reply.message["detail"]


async def test_headers_for_other_purposes_are_not_taken_for_keys() -> None:
    async with run_guarded(make_server()) as world:
        reply = await ask(world, None, idempotency_key=ALICE, x_csrf_token=ALICE)
        assert (reply.status, "auth_key_header" in reply.message["detail"]) == (401, False)


async def test_wrong_keys_in_the_configured_header_are_throttled() -> None:
    async with run_guarded(make_server(**KEY_HEADER)) as world:
        statuses = [(await ask(world, None, x_api_key=f"wrong-{n}")).status for n in range(31)]
        assert statuses == [403] * 30 + [429]
        assert (await ask(world, "wrong-again")).status == 429


@for_each(
    "name", ["Authorization", "Cookie", "Host", "Sec-WebSocket-Key", "X-CSRF-Token", "X API Key", "X-Name", "Key:"]
)
async def test_logged_and_reserved_headers_are_rejected_as_key_headers(name: str) -> None:
    with pytest.raises(ValueError, match="auth_key_header"):
        async with run_guarded(make_server(auth_key_header=name)):
            pass


async def test_added_keys_are_accepted_after_a_rejection(tmp_path: Path) -> None:
    old, new = KeyFile(tmp_path / "keys.json"), KeyFile(tmp_path / "new.json")
    old.add("first", (), 0.0, None)
    key = new.add("second", (), 0.0, None)
    async with run_guarded(make_server([auth.keys(file=str(old.path))])) as world:
        assert (await world.post(key, PING)).status == 403
        new.path.replace(old.path)
        guard = world.runtime.guard
        assert guard is not None
        guard.refresh()
        assert (await world.post(key, PING)).status == 200
