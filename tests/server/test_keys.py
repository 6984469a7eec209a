import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cases import for_each
from millstream._protocol.errors import LocalError
from millstream._server.calls import KEY_FILE, Secrets, load_secrets, state_directory
from patience import WAIT

POSIX = os.name == "posix"
ONE, TWO = "1" * 32, "2" * 40

RACER = """
import sys
from pathlib import Path
from millstream._server.calls import load_secrets
print("ready", flush=True)
sys.stdin.readline()
found = load_secrets("", state_dir=Path(sys.argv[1]))
print(found.source, found.values[0].decode())
"""


def test_key_setting_takes_precedence_and_writes_no_file(tmp_path: Path) -> None:
    assert load_secrets(ONE, state_dir=tmp_path / "state") == Secrets((ONE.encode(),), "setting")
    assert not (tmp_path / "state").exists()


def test_several_secrets_are_separated_by_commas_and_keep_their_order() -> None:
    assert load_secrets(f" {TWO} ,{ONE}").values == (TWO.encode(), ONE.encode())


@for_each("setting", ["short", "1" * 31, f"{ONE},", f"{ONE},short", ",", f"{ONE},,{TWO}"])
def test_short_secrets_are_rejected_with_a_command_to_generate_one(setting: str) -> None:
    with pytest.raises(ValueError, match="token_urlsafe") as error:
        load_secrets(setting)
    assert "MILLSTREAM_SECRET_KEY" in str(error.value)
    assert ONE not in str(error.value)


def test_key_file_is_created_once_with_owner_only_permissions(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    first = load_secrets("", state_dir=state)
    assert first.source == "file"
    assert first.warning is None
    assert len(first.values[0]) >= 32
    assert load_secrets("  ", state_dir=state) == first
    assert [path.name for path in state.iterdir()] == [KEY_FILE]
    if POSIX:
        assert stat.S_IMODE((state / KEY_FILE).stat().st_mode) == 0o600
        assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_each_directory_has_its_own_key(tmp_path: Path) -> None:
    one, two = (load_secrets("", state_dir=tmp_path / name) for name in ["one", "two"])
    assert one.values != two.values


def test_key_file_content_may_be_used_as_the_setting(tmp_path: Path) -> None:
    found = load_secrets("", state_dir=tmp_path)
    text = (tmp_path / KEY_FILE).read_text()
    assert load_secrets(text).values == found.values


def test_a_key_file_may_contain_several_secrets(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text(f"{TWO},{ONE}\n")
    (tmp_path / KEY_FILE).chmod(0o600)
    assert load_secrets("", state_dir=tmp_path) == Secrets((TWO.encode(), ONE.encode()), "file")


if POSIX:

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620])
    def test_key_files_readable_by_others_are_rejected(tmp_path: Path, mode: int) -> None:
        load_secrets("", state_dir=tmp_path)
        path = tmp_path / KEY_FILE
        path.chmod(mode)
        with pytest.raises(LocalError, match="chmod 600") as error:
            load_secrets("", state_dir=tmp_path)
        assert f"{mode:04o}" in str(error.value)
        assert path.read_text().strip() not in str(error.value)

    def test_a_key_file_owned_by_another_user_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        load_secrets("", state_dir=tmp_path)
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(LocalError, match=f"uid {owner}"):
            load_secrets("", state_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b"\xff" * 8, b"\0" * 16])
def test_a_damaged_key_file_is_rejected_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LocalError, match="delete the file"):
        load_secrets("", state_dir=tmp_path)
    assert path.read_bytes() == content


def test_without_a_home_directory_the_key_lasts_for_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ["HOME", "XDG_STATE_HOME", "LOCALAPPDATA"]:
        monkeypatch.delenv(name, raising=False)
    one, two = load_secrets(""), load_secrets("")
    assert one.source == "process"
    assert one.values != two.values
    assert len(one.values[0]) == 32
    assert one.warning is not None
    assert "MILLSTREAM_SECRET_KEY" in one.warning


def test_unwritable_state_directory_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = load_secrets("", state_dir=tmp_path / "file" / "state")
    assert found.source == "process"
    assert found.warning is not None
    assert str(tmp_path / "file" / "state" / KEY_FILE) in found.warning


def test_key_file_that_is_a_directory_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).mkdir(mode=0o700)
    assert load_secrets("", state_dir=tmp_path).source == "process"


@pytest.mark.server
def test_processes_started_together_share_the_key(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for number in range(3):
        state = tmp_path / f"state{number}"
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, str(state)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environ,
            )
            for _ in range(4)
        ]
        try:
            for racer in racers:
                assert racer.stdout is not None
                assert racer.stdout.readline() == "ready\n"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("\n")
                racer.stdin.flush()
            answers = {racer.communicate(timeout=WAIT)[0] for racer in racers}
        finally:
            for racer in racers:
                racer.kill()
                racer.wait()
        assert answers == {f"file {(state / KEY_FILE).read_text()}"}
        assert [path.name for path in state.iterdir()] == [KEY_FILE]


@for_each(
    ("platform", "environ", "directory"),
    [
        ("linux", {"HOME": "/home/a"}, "/home/a/.local/state/millstream"),
        ("linux", {"HOME": "/home/a", "XDG_STATE_HOME": "/state"}, "/state/millstream"),
        ("linux", {"HOME": "/home/a", "XDG_STATE_HOME": "state"}, "/home/a/.local/state/millstream"),
        ("linux", {"HOME": "/home/a", "XDG_STATE_HOME": ""}, "/home/a/.local/state/millstream"),
        ("freebsd14", {"HOME": "/home/a"}, "/home/a/.local/state/millstream"),
        ("darwin", {"HOME": "/Users/a"}, "/Users/a/Library/Application Support/millstream"),
        ("win32", {"LOCALAPPDATA": "/AppData/Local"}, "/AppData/Local/millstream"),
        ("linux", {}, None),
        ("darwin", {}, None),
        ("win32", {"HOME": "/home/a"}, None),
    ],
)
def test_the_state_directory_follows_the_platform(
    platform: str, environ: dict[str, str], directory: str | None
) -> None:
    assert state_directory(environ, platform) == (None if directory is None else Path(directory))


def test_the_state_directory_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory(platform="linux") == tmp_path / "millstream"
    found = load_secrets("", state_dir=state_directory(platform="linux"))
    if sys.platform == "linux":
        assert load_secrets("") == found
