import json
import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cases import for_each
from millstream import Settings
from processes import ROOT

DEPLOY = ROOT / "deploy"
OTHER = {"MCP_SERVER_AUTH_KEY", "MAX_CONNECTIONS"}
"""Variables of ours that have another name."""


def known(variable: str) -> bool:
    """Whether the server understands a variable."""
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    return variable in OTHER or (
        variable.startswith("MILLSTREAM_") and variable.removeprefix("MILLSTREAM_").lower() in fields
    )


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8")))


@for_each("file", ["Dockerfile", "compose.yaml", ".env.example", "chart/values.yaml", "gateway.yaml"])
@for_each("kind", ["names", "secrets"])
def test_settings_in_files_exist_and_contain_no_secrets(file: str, kind: str) -> None:
    text = (DEPLOY / file).read_text("utf-8")
    if kind == "names":
        assert [name for name in re.findall(r"\b(?:MILLSTREAM|MCP_SERVER)_[A-Z_]+\b", text) if not known(name)] == []
    else:
        assert re.findall(r"^ *-? *(?:\w*KEY|\w*PASSWORD) *[:=] *(?!\$\{)[^\s\\]+", text, re.MULTILINE) == []


def test_container_settings_load() -> None:
    environment = {
        name: re.sub(r"\$\{(\w+)(?::-([^}]*))?[^}]*\}", r"\2", str(value)) or "x" * 40
        for name, value in compose()["services"]["app"]["environment"].items()
    }
    assert Settings.load(environment).hub_connections == 1000
    dockerfile = dict(re.findall(r"(MILLSTREAM_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text("utf-8")))
    assert Settings.load(dockerfile).drain_delay == 5.0


def test_compose_variables_are_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text("utf-8")))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert asked == offered


def test_stop_grace_exceeds_the_drain_time() -> None:
    takes = 5.0 + Settings().drain_timeout
    assert int(compose()["services"]["app"]["stop_grace_period"].removesuffix("s")) > takes
    unit = (DEPLOY / "systemd/millstream.service").read_text("utf-8")
    assert int(re.findall(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[0]) > takes
    (gateway,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", (DEPLOY / "gateway.yaml").read_text("utf-8"))
    assert int(gateway) > takes
    pods = (DEPLOY / "chart/templates/deployment.yaml").read_text("utf-8")
    assert "terminationGracePeriodSeconds: {{ add .Values.drainDelay .Values.drainTimeout 15 }}" in pods


def test_servers_trust_only_their_own_proxy() -> None:
    network, app = compose()["networks"]["inside"], compose()["services"]["app"]
    (subnet,) = [each["subnet"] for each in network["ipam"]["config"]]
    assert app["environment"]["FORWARDED_ALLOW_IPS"] == subnet
    assert (app["networks"], "ports" in app) == (["inside"], False)
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in (DEPLOY / "nginx.conf").read_text("utf-8")
    values = yaml.safe_load((DEPLOY / "chart/values.yaml").read_text("utf-8"))
    assert values["trustedProxies"] == []
    pods = (DEPLOY / "chart/templates/deployment.yaml").read_text("utf-8")
    trusted = '{{ required "%s" (join "," .Values.trustedProxies) | quote }}'
    why = "Set trustedProxies to the networks of your ingress controller's pods."
    assert f"- name: FORWARDED_ALLOW_IPS\n              value: {trusted % why}" in pods


def test_redis_is_configured_for_durability() -> None:
    command = [str(part) for part in compose()["services"]["redis"]["command"]]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")


def test_image_files_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    volumes = [volume.split(":")[0] for volume in compose()["services"]["nginx"]["volumes"]]
    assert [each for each in volumes if not each.endswith("certs") and not (DEPLOY / each).exists()] == []
    assert Path(ROOT / "requirements/image.txt").read_text("utf-8").count("hiredis==") == 1


def test_page_and_systemd_unit_agree_on_the_path() -> None:
    unit = (DEPLOY / "systemd/millstream.service").read_text("utf-8")
    (program,) = re.findall(r"^ExecStart=\S+ run (\S+)", unit, re.MULTILINE)
    (gateway,) = re.findall(
        r"^ExecStart=\S+ gateway (\S+)", (DEPLOY / "systemd/gateway.conf").read_text("utf-8"), re.MULTILINE
    )
    page = (ROOT / "docs/guides/deploying.md").read_text("utf-8")
    (folder,) = re.findall(r"^sudo install .* team\.toml .*millstream-keys\.json (\S+)$", page, re.MULTILINE)
    assert gateway == f"{folder}/team.toml"
    assert set(re.findall(r"/srv/\S+\.json", page)) == {f"{folder}/millstream-keys.json", f"{folder}/users.json"}
    assert set(re.findall(r"/srv/\S+\.py", page)) == {program}
    assert set(re.findall(r"/app/\w+\.py", page)) == {"/app/server.py"}


def test_grafana_dashboard_uses_existing_metrics() -> None:
    known = set(
        re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8"), re.MULTILINE)
    )
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
    assert board["panels"]
    for panel in board["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = re.findall(
                r"\b((?:mcp_server|hub|process|millstream)_\w+?)(?:_bucket|_count|_sum)?\{", target["expr"]
            )
            assert names, target["expr"]
            assert set(names) <= known, panel["title"]
