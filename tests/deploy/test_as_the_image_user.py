"""The commands of the image, the compose file, the chart, and the unit, run as their user, who owns few folders.

If root runs the tests, the server has the image's user id, and the folders belong to root, as Docker makes them. The
one capability left lets it read files, because this environment's Python may be in a folder of root's. It can't write
any. Other users can't give folders to root: there, the folders are read-only, and a user namespace shows the image's
user id where the kernel allows one.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

from cases import for_each
from patience import WAIT
from processes import ROOT, free_port, run_server
from redis_parts import RedisServer
from workers_world import until

pytestmark = pytest.mark.server

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "guides" / "deploying.md").read_text("utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
USER = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[0]
KEY = "a-key-for-this-test-that-is-long-enough-to-be-one"
SECRETS = {
    "MCP_SERVER_AUTH_KEY": KEY,
    "MILLSTREAM_SECRET_KEY": KEY[::-1],
    "REDIS_PASSWORD": "",
    "PUBLIC_NAME": "a.example",
}


def as_image_user() -> list[str]:
    """Return a command that runs another one as the image's user."""
    if os.getuid() == 0:
        reads = "-all,+dac_read_search"
        user = ["--reuid", USER, "--regid", USER, "--clear-groups"]
        return ["setpriv", *user, "--inh-caps", reads, "--ambient-caps", reads, "--pdeathsig", "KILL", "--"]
    mapped = ["unshare", "--user", "--map-user", USER, "--map-group", USER, "--"]
    try:
        allowed = subprocess.run([*mapped, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return mapped if allowed else []


class Container:
    """Folders as Docker makes them: root's, except for those that the image or a volume gives to its user."""

    def __init__(self, folder: Path) -> None:
        self.app, self.state, self.tmp, self.logs = (folder / name for name in ("app", "state", "tmp", "logs"))
        for each in (self.app, self.state, self.tmp, self.logs):
            each.mkdir()
        shutil.copy(DEPLOY / "server.py", self.app)
        if os.getuid() == 0:
            folder.chmod(0o755)
            self.give(self.state, self.tmp)
        else:
            self.app.chmod(0o555)
            self.logs.chmod(0o555)

    @staticmethod
    def give(*folders: Path) -> None:
        """Give folders to the image's user, as the image, a volume, or systemd does."""
        for each in folders:
            each.chmod(0o755)
            if os.getuid() == 0:
                os.chown(each, int(USER), int(USER))

    def command(self, *words: str) -> list[str]:
        start = "import os, sys; os.chdir(sys.argv.pop(1)); from millstream._cli import main; main()"
        return [*as_image_user(), sys.executable, "-c", start, str(self.app), *words]

    @contextmanager
    def run(self, *words: str, **environment: str) -> Iterator[int]:
        port = free_port()
        variables = {"HOME": str(self.state), "TMPDIR": str(self.tmp), **environment}
        with run_server(self.command(*words, "--port", str(port)), port, self.state.parent / "log", **variables):
            yield port

    @property
    def log(self) -> str:
        return (self.state.parent / "log").read_text("utf-8")


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    for name in [name for name in os.environ if name.startswith(("MILLSTREAM_", "XDG_"))]:
        monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory() as name:
        made = Container(Path(name))
        yield made
        for each in (made.app, made.logs):
            each.chmod(0o755)


def ask(port: int, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, given)
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as reply:  # noqa: S310  a loopback address
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def check(container: Container, port: int) -> None:
    """Call a tool with the key, and look at what stays closed, where logs are, and what was written."""
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "get_current_time", "arguments": {}},
    }
    media = {"content_type": "application/json", "accept": "application/json, text/event-stream"}
    status, text = ask(port, "/mcp", message, authorization=f"Bearer {KEY}", **media)
    assert status == 200
    assert "+00:00" in text
    assert ask(port, "/mcp", message, **media)[0] == 401
    assert (ask(port, "/livez")[0], ask(port, "/readyz")[0]) == (200, 200)
    assert '"ok"' in ask(port, "/health")[1]
    assert ask(port, "/metrics")[0] == 401
    until(lambda: "is serving on" in container.log)
    assert "ermission denied" not in container.log
    assert [each.name for each in container.app.iterdir()] == ["server.py"]


def of_the_image() -> dict[str, str]:
    return dict(re.findall(r"(MILLSTREAM_\w+)=(\S+)", DOCKERFILE))


def fill(values: Mapping[str, object]) -> dict[str, str]:
    """Replace `${NAME}`, `${NAME:-default}`, and `${NAME:?error}`."""

    def value(found: re.Match[str]) -> str:
        return SECRETS.get(found[1], found[2] or "")

    pattern = r"\$\{(\w+)(?::-([^}]*))?[^}]*\}"
    return {name: re.sub(pattern, value, str(each)) for name, each in values.items()}


def test_commands_run_with_the_id_and_permissions_of_the_image_user(container: Container) -> None:
    program = f"import os, pathlib; print(os.getuid()); pathlib.Path({str(container.state)!r}, 'x').write_text('')"
    told = subprocess.run([*as_image_user(), sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout.strip() in ({USER} if os.getuid() == 0 else {USER, str(os.getuid())})
    assert (container.state / "x").stat().st_uid == (int(USER) if os.getuid() == 0 else os.getuid())
    refused = program.replace(str(container.state), str(container.app))
    failed = subprocess.run(
        [*as_image_user(), sys.executable, "-c", refused], check=False, capture_output=True, text=True
    )
    assert "PermissionError" in failed.stderr


def test_image_serves_as_its_user(container: Container) -> None:
    words = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
    with container.run(*words, **of_the_image(), MCP_SERVER_AUTH_KEY=KEY) as port:
        check(container, port)
        probe = json.loads(re.findall(r"CMD (\[\"python.*\])$", DOCKERFILE, re.MULTILINE)[0])[1:]
        healthy = [each.replace(":8000", f":{port}") for each in probe]
        assert subprocess.run([sys.executable, *healthy], check=False, timeout=WAIT).returncode == 0


def test_compose_service_serves_as_its_user(container: Container) -> None:
    app = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["app"]
    assert "volumes" not in app  # Docker creates a missing folder as root's, and the user can't write it
    words = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
    with closing(RedisServer()) as redis:
        environment = {
            **of_the_image(),
            **fill(app["environment"]),
            "MILLSTREAM_STORE": f"redis://127.0.0.1:{redis.port}/0",
        }
        with container.run(*words, **environment) as port:
            check(container, port)
            assert ask(port, "/docs", host="a.example")[0] in (200, 401)
            assert ask(port, "/docs", host="b.example")[0] == 421


def test_helm_chart_pod_serves_as_its_user(container: Container) -> None:
    text = (DEPLOY / "chart" / "templates" / "deployment.yaml").read_text("utf-8")
    values = yaml.safe_load((DEPLOY / "chart" / "values.yaml").read_text("utf-8"))
    (arguments,) = re.findall(r"args: (\[.*\])", text)
    words = yaml.safe_load(arguments.replace("{{ .Values.workers | quote }}", f'"{values["workers"]}"'))
    at = words.index("--port")
    assert words[at + 1] in re.findall(r"containerPort: (\d+)", text)
    del words[at : at + 2]  # run() adds a free one
    assert f"runAsUser: {USER}" in text
    environment = {
        **of_the_image(), "MCP_SERVER_AUTH_KEY": KEY, "MILLSTREAM_SECRET_KEY": KEY[::-1],
        "MILLSTREAM_ALLOWED_HOSTS": ",".join(values["hosts"]), "FORWARDED_ALLOW_IPS": "10.42.3.0/24",
        "MILLSTREAM_DRAIN_DELAY": str(values["drainDelay"]), "MILLSTREAM_DRAIN_TIMEOUT": str(values["drainTimeout"]),
    }  # fmt: skip
    with closing(RedisServer()) as redis:
        environment["MILLSTREAM_STORE"] = f"redis://127.0.0.1:{redis.port}/0"
        with container.run(*words, **environment) as port:
            check(container, port)


def test_systemd_unit_serves_in_the_folders_that_systemd_creates(container: Container) -> None:
    unit = (DEPLOY / "systemd" / "millstream.service").read_text("utf-8")
    container.give(container.logs)  # as LogsDirectory= does
    places = {"/var/lib/millstream": str(container.state), "/var/log/millstream": str(container.logs)}
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    for old, new in places.items():
        environment = {name: each.replace(old, new) for name, each in environment.items()}
    words = shlex.split(re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0])[1:]
    words = [each.replace("/srv/millstream", str(container.app)) for each in words]
    # A dynamic user's home is /, which it can't write, like this folder.
    with container.run(*words, **{**environment, "HOME": str(container.app), "MCP_SERVER_AUTH_KEY": KEY}) as port:
        assert ask(port, "/livez")[0] == 200
        assert ask(port, "/mcp", {}, content_type="application/json")[0] == 401
        until(lambda: "is serving on" in (container.logs / "server.log").read_text("utf-8"))
    assert (container.state / "millstream.db").exists()


def give_team(container: Container, folder: Path) -> dict[str, str]:
    """Fill the folder of the team's gateway as its user, and return the keys of Ada and Bob."""
    for each in ("recipes/team.toml", "gateway/shop.py", "gateway/warehouse.py"):
        shutil.copy(ROOT / "examples" / each, folder)
    container.give(folder, *folder.iterdir())
    folder.chmod(0o700)
    programs = container.state / "bin"  # the virtual environment's own may be in a folder of root's
    programs.mkdir(mode=0o755)
    (programs / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
    (programs / "python").chmod(0o755)
    return {"ada": change_keys(container, folder, "add", "ada", "--scope", "orders:write"),
            "bob": change_keys(container, folder, "add", "bob")}  # fmt: skip


def change_keys(container: Container, folder: Path, *words: str) -> str:
    """Change the key file as the gateway's user, and return what the command prints."""
    command = container.command("keys", *words, "--file", str(folder / "millstream-keys.json"))
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT).stdout.strip()


def check_team(port: int, keys: Mapping[str, str]) -> None:
    """Run the page's checks of the gateway, and see that Bob can't order."""
    url = f"http://127.0.0.1:{port}"
    (block,) = re.findall(r"^curl https://mcp\.example\.com/livez\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    program = [sys.executable, "-c", "from millstream._cli import main; main()"]
    for line in re.findall(r"^millstream (.*)$", block, re.MULTILINE):
        words = shlex.split(line.replace("https://mcp.example.com", url).replace("$ADA", keys["ada"]))
        done = subprocess.run([*program, *words], check=False, capture_output=True, text=True, timeout=WAIT)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.startswith("ok ") if words[0] == "doctor" else done.stdout == "7\n"
    assert ask(port, "/livez", host="mcp.example.com") == (200, "ok\n")
    assert ask(port, "/mcp", {}, content_type="application/json", host="other.example.com")[0] == 421
    order = [*program, "call", f"{url}/mcp", "shop_order", "isbn=9780261103573", "--auth"]
    done = subprocess.run([*order, keys["ada"]], check=True, capture_output=True, text=True, timeout=WAIT)
    assert "for team" in done.stdout
    done = subprocess.run([*order, keys["bob"]], check=False, capture_output=True, text=True, timeout=WAIT)
    assert "orders:write" in done.stderr


def signs_in(port: int, key: str) -> bool:
    """Return whether the gateway accepts a key."""
    return ask(port, "/mcp", {}, content_type="application/json", authorization=f"Bearer {key}")[0] not in (401, 403)


def test_gateway_unit_serves_the_folder_of_the_team(container: Container) -> None:
    unit = (DEPLOY / "systemd" / "millstream.service").read_text("utf-8")
    added = (DEPLOY / "systemd" / "gateway.conf").read_text("utf-8")
    container.give(container.logs)
    keys = give_team(container, container.app)
    places = {
        "/var/lib/millstream": str(container.state),
        "/var/log/millstream": str(container.logs),
        "/srv/millstream": str(container.app),
        "/opt/millstream/bin": str(container.state / "bin"),
    }
    settings = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit + added, re.MULTILINE))
    words = shlex.split(re.findall(r"^ExecStart=(\S.*)$", added, re.MULTILINE)[0])[1:]
    for old, new in places.items():
        settings = {name: each.replace(old, new) for name, each in settings.items()}
        words = [each.replace(old, new) for each in words]
    settings["MILLSTREAM_ALLOWED_HOSTS"] = "mcp.example.com"
    with container.run(*words, **settings) as port:
        check_team(port, keys)
        eve = change_keys(container, container.app, "add", "eve")
        change_keys(container, container.app, "revoke", "bob")
        until(lambda: signs_in(port, eve) and not signs_in(port, keys["bob"]))
        assert signs_in(port, keys["ada"])
    assert (container.state / "millstream.db").exists()


def test_gateway_container_serves_the_folder_of_the_team(container: Container) -> None:
    (line,) = re.findall(r"^docker run (.* millstream gateway .*)$", PAGE, re.MULTILINE)
    options, _, command = line.partition(" millstream ")
    (store,) = re.findall(r"--env MILLSTREAM_STORE=(\S+)", options)
    (target,) = re.findall(r"target=/app/(\w+),readonly", options)
    folder = container.app / target
    container.app.chmod(0o755)
    folder.mkdir()
    keys = give_team(container, folder)
    folder.chmod(0o500)
    settings = {"MILLSTREAM_STORE": store.replace("/data", str(container.state)),
                "MILLSTREAM_ALLOWED_HOSTS": "mcp.example.com",
                "PATH": f"{container.state / 'bin'}:{os.environ['PATH']}"}  # fmt: skip
    with container.run(*shlex.split(command), **settings) as port:
        check_team(port, keys)
    assert (container.state / "gateway.db").exists()
    folder.chmod(0o755)


def test_gateway_pod_serves_as_its_user_and_reads_changed_files(container: Container) -> None:
    config, deployment, _ = yaml.safe_load_all((DEPLOY / "gateway.yaml").read_text("utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (declared,) = pod["containers"]
    (mode,) = {each["projected"]["defaultMode"] for each in pod["volumes"] if "projected" in each}
    assert str(pod["securityContext"]["runAsUser"]) == str(pod["securityContext"]["fsGroup"]) == USER
    folder = container.app / "config"
    folder.mkdir()
    container.app.chmod(0o755)
    (folder / "..data").symlink_to("..1")
    key = change_keys(container, container.state, "add", "ada")
    keys = (container.state / "millstream-keys.json").read_text("utf-8")

    def project(name: str, text: str) -> None:
        """Write a version of the volume, as Kubernetes does: root's files, and a link that's replaced."""
        (folder / name).mkdir()
        for each, content in (("team.toml", text), ("millstream-keys.json", keys)):
            path = folder / name / each
            path.write_text(content, "utf-8")
            path.chmod(mode)
            if os.getuid() == 0:
                os.chown(path, 0, int(USER))
            if not (folder / each).is_symlink():
                (folder / each).symlink_to(f"..data/{each}")
        (folder / "..new").symlink_to(name)
        (folder / "..new").rename(folder / "..data")

    nowhere = f"http://127.0.0.1:{free_port()}/mcp"
    text = re.sub(r"https?://[\w.-]+/mcp", nowhere, config["data"]["team.toml"])
    project("..1", text)
    settings = {each["name"]: each.get("value", KEY) for each in declared["env"]}
    assert settings.pop("MILLSTREAM_STORE") == KEY  # from the secret
    settings["MILLSTREAM_PEER"] = "127.0.0.1"
    words = [each.replace("/config", str(folder)) for each in declared["args"]]
    with container.run(*words, **of_the_image(), **settings) as port:
        assert signs_in(port, key)
        assert not signs_in(port, KEY)
        for probe in ("livenessProbe", "readinessProbe"):
            assert ask(port, declared[probe]["httpGet"]["path"], host="10.1.2.3")[0] == 200
        assert ask(port, "/mcp", {}, content_type="application/json", host="other.example.com")[0] == 421
        project("..2", text.replace("upstreams.shop", "upstreams.store"))
        until(lambda: f"Version 2 of {folder}/team.toml is in force" in container.log)
        assert signs_in(port, key)


@for_each("variable", ["MILLSTREAM_LOG_FILE", "MILLSTREAM_STORE"])
def test_error_lists_folders_owned_by_root(variable: str, container: Container) -> None:
    place = container.logs / "server.file"
    value = str(place) if variable == "MILLSTREAM_LOG_FILE" else f"sqlite:///{place}"
    variables = {**os.environ, "HOME": str(container.state), variable: value, "MCP_SERVER_AUTH_KEY": KEY}
    words = container.command("run", "server.py", "--port", str(free_port()))
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False, timeout=WAIT)
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert "Traceback" not in done.stderr
