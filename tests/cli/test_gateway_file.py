"""`millstream gateway add` and `remove` change one upstream of a file, and nothing else."""

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from command_line import Result, run_in_process
from patience import WAIT

pytestmark = pytest.mark.server

SHOP = '[upstreams.shop]\nurl = "https://shop.example.com/mcp"\n'
FILES = {
    "empty": "",
    "one upstream": SHOP,
    "no newline at the end": SHOP[:-1],
    "blank lines at the end": f"{SHOP}\n\n",
    "comments": f"# all\n\n# the shop [here]\n{SHOP}# of the shop\n\n# b\n[settings] # ]\ntool_search = true\n# end\n",
    "other line endings": SHOP.replace("\n", "\r\n"),
    "a byte order mark": f"\ufeff{SHOP}",
    "nested tables": f'{SHOP}[upstreams.shop.policy]\ndeny = ["a", # "[upstreams.time]"\n  "b"]\n[settings]\n',
    "strings with headers": f"name = \"\"\"\n[upstreams.time]\n\"\"\"\ninstructions = '''\n[x]'''\n{SHOP}",
    "an upstream without its variable": '[upstreams.shop]\nurl = "${NOWHERE}"\n',
    "dotted keys": '[upstreams]\nshop.url = "https://shop.example.com/mcp"\n',
}


def edit(file: Path, *words: str) -> Result:
    return run_in_process("gateway", words[0], "--file", str(file), *words[1:])


@pytest.mark.parametrize("name", FILES)
def test_add_and_remove_leave_the_rest_of_a_file_as_it_is(name: str, tmp_path: Path) -> None:
    file, text = tmp_path / "gateway.toml", FILES[name]
    file.write_bytes(text.encode())
    added = edit(file, "add", "time", "--", "uvx", "mcp-server-time", "--tz", 'a "b" \\ ä')
    assert (added.exit_code, added.stderr) == (0, f"Added time to {file}.\n")
    content = file.read_bytes().decode()
    assert content.startswith(text)
    assert ("\r\n" in text) is (content.count("\n") == content.count("\r\n"))
    upstreams = tomllib.loads(content.removeprefix("\ufeff"))["upstreams"]
    assert upstreams["time"] == {"command": ["uvx", "mcp-server-time", "--tz", 'a "b" \\ ä']}
    removed = edit(file, "remove", "time")
    assert (removed.exit_code, removed.stderr) == (0, f"Removed time from {file}.\n")
    assert file.read_bytes().decode() == (f"{text}\n" if text and not text.endswith("\n") else text)
    assert list(tmp_path.iterdir()) == [file]


REMOVED = {
    f"# a\n\n# b\n{SHOP}timeout = 3\n# of it\n[upstreams.shop.policy]\nallow = ['x']\n# c\n[settings]\n": (
        "# a\n\n# b\n# c\n[settings]\n"
    ),
    f"[settings]\n\n{SHOP}\n[upstreams.b]\nurl = 'http://b'\n": "[settings]\n\n[upstreams.b]\nurl = 'http://b'\n",
    f"[upstreams.b]\nurl = 'http://b'\n{SHOP}": "[upstreams.b]\nurl = 'http://b'\n",
    "[upstreams]\nshop.url = 'http://a' # a\nb = { url = 'http://b' }\n": "[upstreams]\nb = { url = 'http://b' }\n",
    "upstreams.shop.url = 'http://a'\nupstreams.b.url = 'http://b'": "upstreams.b.url = 'http://b'",
    '[upstreams."shop"]\nurl = "oops"\n[upstreams.b]\nurl = "http://b"\n': '[upstreams.b]\nurl = "http://b"\n',
    f"{SHOP}[upstreams.b]\nurl = 'http://b'\n[upstreams.shop.policy]\nhide = ['x']\n": (
        "[upstreams.b]\nurl = 'http://b'\n"
    ),
}


@pytest.mark.parametrize("before", REMOVED)
def test_remove_cuts_all_tables_of_an_upstream(before: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(before)
    assert edit(file, "remove", "shop").exit_code == 0
    assert file.read_text() == REMOVED[before]


MISTAKES = {
    (
        "add",
        "shop",
        "http://b",
    ): "gateway.toml already has an upstream shop.\n  Fix:   Choose another name, or remove it: "
    "millstream gateway remove shop",
    ("add", "b", "htp://b"): "htp://b isn't a server URL. Use a URL such as https://example.com/mcp.",
    ("add", "b", "http://b:x/"): "http://b:x/ isn't a valid URL",
    ("add", "b", "https://ada:secret@b/"): "A URL must not contain a user name or password.",
    ("add", "b", "b.example.com:80/mcp"): "If it's a URL, write http://b.example.com:80/mcp",
    ("add", "b", "nowhere.py"): "nowhere.py. Check the path.",
    ("add", "my b", "http://b"): "the prefix 'my b' produces names that some clients can't call",
    ("add", "b", "http://b", "more"): "Unexpected argument: more. A URL is one argument.",
    ("add", "b"): "Add a URL or a command: millstream gateway add NAME URL_OR_COMMAND",
    (
        "add",
        "b",
        "uvx",
        "x",
        "--from",
        "y",
    ): "A command with arguments comes after --.\n  Fix:   millstream gateway add b -- uvx x --from y",
    ("remove", "shp"): "gateway.toml has no upstream shp; did you mean 'shop'?",
}


def test_add_creates_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = run_in_process("gateway", "remove", "shop")
    assert (missing.exit_code, Path("gateway.toml").exists()) == (1, False)
    assert "There is no file gateway.toml.\n  Fix:   Create it, or name another one with --file." in missing.stderr
    assert run_in_process("gateway", "add", "shop", "ftp://shop.example.com").exit_code == 1
    assert not Path("gateway.toml").exists()
    assert run_in_process("gateway", "add", "shop", "https://shop.example.com/mcp").exit_code == 0
    added = Path("gateway.toml").read_text()
    assert added.startswith(f'{SHOP}trust = "follow"  # ')
    assert tomllib.loads(added)["upstreams"]["shop"] == {"url": "https://shop.example.com/mcp", "trust": "follow"}


@pytest.mark.parametrize("words", MISTAKES)
@pytest.mark.parametrize("start", ["", '[upstreams.first]\nurl = "${NOWHERE}"\n'])
def test_mistakes_leave_the_file_as_it_is(
    words: tuple[str, ...], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("gateway.toml")
    file.write_text(start + SHOP)
    failed = run_in_process("gateway", *words)
    assert failed.exit_code in (1, 2)
    assert MISTAKES[words] in failed.stderr
    assert "secret" not in failed.stderr
    assert file.read_text() == start + SHOP


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no/gateway.toml", None, "There is no folder no."),
        ("mcp.json", "{}", "mcp.json isn't a .toml file."),
        ("gateway.toml", "[upstreams.shop\n", "gateway.toml isn't valid TOML"),
        ("gateway.toml", "upstreams = { shop = { url = 'http://a' }, b = { url = 'http://b' } }\n", ""),
        ("gateway.toml", f"{SHOP}timout = 1\n[upstreams.b]\nurl = 'http://b'\n", "did you mean 'timeout'"),
    ],
)
def test_files_that_cannot_be_changed_are_explained(
    name: str, text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    for words in (["add", "c", "http://c"], ["remove", "b"]):
        failed = run_in_process("gateway", *words, "--file", name)
        assert failed.exit_code == 1
        assert message in failed.stderr
        assert text is None or Path(name).read_text() == text


def test_mode_and_link_of_a_file_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "real.toml", tmp_path / "gateway.toml"
    file.write_text(SHOP)
    file.chmod(0o640)
    link.symlink_to(file)
    assert edit(link, "add", "b", "http://b/mcp").exit_code == 0
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.read_text().startswith(f'{SHOP}\n[upstreams.b]\nurl = "http://b/mcp"\n')


def test_concurrent_commands_do_not_undo_each_other(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(SHOP)
    command = [sys.executable, "-m", "millstream", "gateway", "add", "--file", str(file)]
    running = [subprocess.Popen([*command, f"b{n}", f"http://b{n}/"], stderr=subprocess.PIPE) for n in range(4)]
    for each in running:
        assert each.communicate(timeout=WAIT)[1].startswith(b"Added b")
    assert set(tomllib.loads(file.read_text())["upstreams"]) == {"shop", "b0", "b1", "b2", "b3"}


def test_json_results_name_what_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("")
    os.environ.pop("NOWHERE", None)
    assert f'"file": "{file}"' in edit(file, "add", "b", "uvx b", "--json").stdout
    assert tomllib.loads(file.read_text()) == {"upstreams": {"b": {"command": "uvx b"}}}
    assert '"removed": "b"' in edit(file, "remove", "b", "--json").stdout
    assert file.read_text() == ""
