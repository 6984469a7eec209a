import asyncio
import os
import stat
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from cases import for_each
from command_line import CliRunner
from issuing_world import FORM, URL, Browser, Desk
from millstream import auth
from millstream._app.server_process import CommandError
from millstream._cli.program import program
from millstream._protocol.errors import LocalError
from millstream.auth._authorization_server.users import MAX_PASSWORD, UserFile, hash_password, verify_password
from patience import WAIT
from redis_parts import until


@pytest.fixture
def fast_passwords() -> None:
    """Hash passwords at the cost in production."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.json"


def users(path: Path, *arguments: str, typed: str = "") -> str:
    """Run `millstream users`, and return its output."""
    done = CliRunner().invoke(program("users"), ["users", *arguments, "--file", str(path)], input=typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_missing_input_is_not_reported_as_a_short_password(path: Path) -> None:
    done = CliRunner().invoke(program("users"), ["users", "add", "ada", "--file", str(path)], input="")
    assert str(done.exception) == "There is no password: the input is empty."
    assert not path.exists()


def seen(path: Path) -> tuple[int, str]:
    """Return a file's mode and text."""
    return stat.S_IMODE(path.stat().st_mode), path.read_text()


def write(path: Path, text: str) -> None:
    """Overwrite a file."""
    path.write_text(text)


async def test_users_are_added_listed_changed_and_removed(path: Path) -> None:
    users(path, "add", "ada", "--scope", "orders:write", typed="correct horse\n")
    mode, text = seen(path)
    assert mode == 0o600
    assert "correct horse" not in text
    assert "$argon2id$v=19$m=65536,t=3,p=1$" in text
    assert "ada\torders:write\t" in users(path, "list")
    people = auth.users(file=path)
    found = await people.check("ADA", "correct horse")
    assert found is not None
    assert (found.subject, found.scopes) == ("ada", ("orders:write",))
    assert await people.check("ada", "correct horse!") is None
    assert await people.check("nobody", "correct horse") is None
    before = people.epoch()
    users(path, "password", "ada", typed="another one\n")
    assert people.epoch() != before
    assert await people.check("ada", "correct horse") is None
    assert await people.check("ada", "another one") is not None
    users(path, "remove", "ada")
    people.epoch()
    assert people.find("ada") is None


@pytest.mark.usefixtures("quick_hashes")
async def test_new_passwords_and_recreated_users_end_old_grants(desk: Desk, path: Path) -> None:
    file = UserFile(path)
    file.add("ada", "correct horse", ("*",), time.time())
    desk = Desk(desk.services.store, people=auth.users(file=path))
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    assert await desk.who(given["access_token"]) is not None
    file.set_password("ada", "correct horse", time.time() + 1)
    desk.running.epoch()
    assert await desk.who(given["access_token"]) is None
    assert (await desk.refresh(id, given["refresh_token"])).error == "invalid_grant"


@pytest.mark.usefixtures("quick_hashes")
async def test_changed_rights_count_from_the_next_token_on(desk: Desk, path: Path) -> None:
    users(path, "add", "ada", "--scope", "orders:write", "--scope", "orders:read", typed="correct horse\n")
    desk = Desk(desk.services.store, people=auth.users(file=path))
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id, scope="orders:write orders:read")
    assert given["scope"] == "orders:write orders:read"
    users(path, "change", "ADA", "--scope", "orders:read", "--group", "staff")
    desk.running.epoch()
    renewed = await desk.refresh(id, given["refresh_token"])
    assert renewed.message["scope"] == "orders:read"
    found = await desk.who(renewed.message["access_token"])
    assert found is not None
    assert (found.principal.scopes, found.principal.claims["groups"]) == ({"orders:read"}, ["staff"])


@pytest.mark.usefixtures("quick_hashes")
@for_each(("arguments", "typed", "said"), [
    (("add", "a b"), "long enough\n", "isn't a valid user name"), (("add", ""), "", "'' isn't a valid"),
    (("add", "ada"), "short\n", "8 to 1024"),
    (("add", "ada", "--scope", "a b"), "long enough\n", "valid scope"), (("remove", "eve"), "", "no user 'eve'"),
    (("password", "eve"), "long enough\n", "no user 'eve'"), (("change", "eve"), "", "no user 'eve'"),
    (("change", "ada", "--group", "a b"), "", "valid group"),
])  # fmt: skip
def test_invalid_user_commands_are_explained(path: Path, arguments: tuple[str, ...], typed: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        users(path, *arguments, typed=typed)


@pytest.mark.usefixtures("quick_hashes")
def test_user_names_are_normalized(path: Path) -> None:
    UserFile(path).add("Ada", "correct horse", (), 0)
    with pytest.raises(ValueError, match="already"):
        UserFile(path).add("ADA", "correct horse", (), 0)


def test_writable_and_invalid_user_files_are_rejected(path: Path) -> None:
    with pytest.raises(LocalError, match="millstream users add NAME"):
        auth.users(file=path)
    path.write_text("[]")
    path.chmod(0o600)
    with pytest.raises(LocalError, match=r"isn't a user file: .* `millstream users add NAME` writes one"):
        auth.users(file=path)
    if os.name == "posix":
        path.chmod(0o622)
        with pytest.raises(LocalError, match="chmod 600"):
            auth.users(file=path)


@pytest.mark.usefixtures("quick_hashes")
async def test_broken_user_file_locks_users_out_until_repaired(path: Path) -> None:
    UserFile(path).add("ada", "correct horse", (), 0)
    people = auth.users(file=path)
    _, whole = seen(path)
    write(path, "{")
    people.epoch()
    assert people.find("ada") is None
    write(path, whole)
    people.epoch()
    assert people.find("ada") is not None


@pytest.mark.usefixtures("quick_hashes")
def test_passwords_are_compared_in_full() -> None:
    longest = "p" * MAX_PASSWORD
    kept = hash_password(longest)
    assert verify_password(longest, kept)
    assert not verify_password(f"{longest}x", kept)


@pytest.mark.usefixtures("quick_hashes")
async def test_passwords_that_are_not_utf_8_are_treated_as_wrong(desk: Desk, path: Path) -> None:
    users(path, "add", "ada", typed="correct horse\n")
    desk = Desk(desk.services.store, people=auth.users(file=path))
    browser = Browser(desk)
    page = await browser.open((await desk.register())["client_id"])
    body = f"{urlencode({'ticket': page.ticket, 'answer': 'allow', 'name': 'ada'})}&password=%ff".encode()
    tries = [await browser.ask("POST", "/authorize", body=body, content_type=FORM, origin=URL) for _ in range(11)]
    assert [each.status for each in tries] == [403] * 10 + [429]
    assert "The name or password is wrong." in tries[0].text


@pytest.mark.usefixtures("quick_hashes")
def test_passwords_may_contain_any_terminal_input() -> None:
    kept = hash_password("p\udcffssword")
    assert verify_password("p\udcffssword", kept)
    assert not verify_password("p\ufffdssword", kept)


def test_hashes_from_other_argon2_libraries_are_accepted() -> None:
    kept = "$argon2id$v=19$m=64,t=1,p=4$ltdlDZp7BnrAyXHjFNoOfA$Tsx8N4a9H5RNuN2Or1hqoMJ9tGWC90cNs81OVjVuQag"
    assert verify_password("correct horse", kept)
    assert not verify_password("correct horses", kept)
    for broken in ("", "plain", kept[:-4], kept.replace("argon2id", "argon2i"), kept.replace("m=64", "m=1")):
        assert not verify_password("correct horse", broken)


async def test_user_names_that_differ_only_in_case_are_the_same_user(path: Path) -> None:
    users(path, "add", "ada", typed="first password\n")
    _, first = seen(path)
    write(path, '{"users": []}')
    users(path, "add", "Ada", typed="second password\n")
    _, second = seen(path)
    entries = ",".join(text[text.index("[") + 1 : text.rindex("]")] for text in (first, second))
    write(path, f'{{"users": [{entries}]}}')
    users(path, "password", "ada", typed="third password\n")
    people = auth.users(file=path)
    assert await people.check("ada", "second password") is None
    assert await people.check("ada", "third password") is not None
    users(path, "remove", "ada")
    people.epoch()
    assert people.find("ada") is None


async def test_canceled_checks_keep_their_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, gate = 0, 0, threading.Event()

    def slow(password: str, kept: str | None) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gate.wait(WAIT)
        running -= 1
        return False

    monkeypatch.setattr("millstream.auth._authorization_server.users.verify_password", slow)
    file = UserFile(path)
    for _ in range(3):
        checks = [asyncio.create_task(file.check("ada", "wrong")) for _ in range(4)]
        await until(lambda: running == 2)
        for each in checks:
            each.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
    last = asyncio.create_task(file.check("ada", "wrong"))
    gate.set()
    assert await last is None
    assert most == 2
