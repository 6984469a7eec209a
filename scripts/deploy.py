"""Check the deployment files with the tools that read them: `make deploy-check`.

Helm renders the chart with several values, kubeconform compares the output with the schemas of Kubernetes, the loader
of Docker Compose reads the compose file, hadolint the Dockerfiles, actionlint and zizmor the workflows of GitHub, and
the types of Traefik its routes. The Go tools go into `.venv-deploy/bin`, in the versions below. tests/deploy has the
checks without these tools: nginx with its configuration, systemd with its units.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from millstream import Settings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
BIN = ROOT / ".venv-deploy" / "bin"
TOOLS = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
    "actionlint": "github.com/rhysd/actionlint/cmd/actionlint@v1.7.7",
    "cmd": "github.com/compose-spec/compose-go/v2/cmd@v2.16.2",
}
"""Name of the program -> Go package and version."""
TRAEFIK = ROOT / "scripts" / "traefik"
"""The Go program that reads files with Traefik's types; its `go.mod` has the version."""
KUBERNETES = "k8s.io/kubernetes@v1.34.2"
"""The Go module with the published API. Its packages aren't built."""
RELEASES = ("shop", "a-release-whose-name-is-as-long-as-helm-permits-names")
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "replicas": 3,
        "workers": 4,
        "image": {"repository": "registry.example.com/millstream", "tag": 20261127},
        "imagePullSecrets": [{"name": "registry"}],
        "hosts": ["mcp.example.com", "mcp.example.org"],
        "settings": {
            "MILLSTREAM_LOG_LEVEL": "debug",
            "MILLSTREAM_MAX_BODY": 4194304,
            "MILLSTREAM_HEARTBEAT": 2.5,
            "MILLSTREAM_ALLOWED_ORIGINS": ["https://a.example", "https://b.example"],
            "MILLSTREAM_SESSIONS": False,
        },
        "server": (DEPLOY / "server.py").read_text("utf-8"),
        "autoscaling": {"enabled": True, "minReplicas": 3},
        "podAnnotations": {"example.com/team": "a", "prometheus.io/scrape": "false"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "mcp", "effect": "NoSchedule"}],
        "maxUnavailable": "25%",
    },
    "bare": {"hosts": [], "resources": {}, "drainDelay": 0, "drainTimeout": 600},
}
DOCKERFILES = {DEPLOY / "Dockerfile": (), ROOT / "examples/time_agent/Dockerfile": ("DL3013",)}
"""File -> rules that don't apply: an example installs the newest versions."""


def run(*command: str | Path, given: str = "", where: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """What a command prints; a command that fails ends the program with what it said."""
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, encoding="utf-8", check=False, cwd=where,
        env=os.environ | (environment or {}),
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def install() -> None:
    """Install the Go tools that are missing in these versions. `go` checks them against its checksum database."""
    if shutil.which("go") is None:
        sys.exit("Helm, kubeconform and the loader of compose files are Go programs. Install go first.")
    for name, package in TOOLS.items():
        path, _, version = package.partition("@")
        mark = BIN / f".{name}-{version}"
        if not mark.exists():
            print(f"Installing {path} {version} ...", flush=True)
            run("go", "install", package, where=BIN, environment={"GOBIN": str(BIN), "GOTOOLCHAIN": "local"})
            mark.touch()
    print("Building the reader of Traefik's files ...", flush=True)
    run("go", "build", "-o", BIN / "traefikcheck", ".", where=TRAEFIK, environment={"GOTOOLCHAIN": "local"})


def text(value: object) -> str:
    """Return the value of an environment variable."""
    return ",".join(value) if isinstance(value, list) else json.dumps(value).strip('"')


def check_refused(name: str, folder: Path) -> None:
    """Check that a setting with a value of its own is refused, because Kubernetes would get it twice."""
    values = {"trustedProxies": ["10.42.3.0/24"], "settings": {name: "1"}}
    (folder / "refused.values").write_text(json.dumps(values), "utf-8")
    command = [BIN / "helm", "template", "shop", DEPLOY / "chart", "--values", folder / "refused.values"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if f"instead of {name} in settings" not in done.stderr:
        sys.exit(f"The chart takes {name} in its settings:\n{done.stdout}{done.stderr}")


def check_deployment(manifests: str, values: dict[str, Any]) -> None:
    """Check that a pod gets the image and each setting as they were written, once, and that the server accepts them."""
    (made,) = [each for each in yaml.safe_load_all(manifests) if each["kind"] == "Deployment"]
    (container,) = made["spec"]["template"]["spec"]["containers"]
    settings = [(each["name"], each["value"]) for each in container["env"]]
    if len(dict(settings)) < len(settings):
        sys.exit(f"A variable has two values: {settings}")
    wrong = {
        name: dict(settings)[name]
        for name, value in values.get("settings", {}).items()
        if dict(settings)[name] != text(value)
    }
    tag = values.get("image", {}).get("tag")
    if wrong or (tag and not container["image"].endswith(f":{tag}")):
        sys.exit(f"The chart changes values: {wrong}, {container['image']}")
    Settings.load(dict(settings))


def schemas(folder: Path) -> str:
    """Write a schema for each Kubernetes kind, and return the location for kubeconform.

    A key that the API doesn't know is an error, as with `kubectl --validate=strict`.
    """
    module = json.loads(run("go", "mod", "download", "-json", KUBERNETES, where=folder))
    described = json.loads((Path(module["Dir"]) / "api/openapi-spec/swagger.json").read_text("utf-8"))["definitions"]
    for each in described.values():
        if each.get("format") == "int-or-string":
            each["type"] = ["string", "integer"]
        elif "properties" in each:
            each["additionalProperties"] = False
    described["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"] = ["string", "number"]
    (folder / "all.json").write_text(json.dumps({"definitions": described}), "utf-8")
    for name, each in described.items():
        for kind in each.get("x-kubernetes-group-version-kind", ()):
            parts = [kind["kind"], kind["group"].partition(".")[0], kind["version"]]
            file = folder / f"{'-'.join(part for part in parts if part).lower()}.json"
            file.write_text(json.dumps({"$ref": f"all.json#/definitions/{name}"}), "utf-8")
    return f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def chart(folder: Path) -> str:
    """Lint and render the chart with all values, and compare the output with the schemas of Kubernetes."""
    location, kinds = schemas(folder), set[str]()
    for name, values in VALUES.items():
        file = folder / f"{name}.values"
        file.write_text(json.dumps({"trustedProxies": ["10.42.3.0/24"], **values}), "utf-8")
        run(BIN / "helm", "lint", "--strict", DEPLOY / "chart", "--values", file)
        for release in RELEASES:
            manifests = run(BIN / "helm", "template", release, DEPLOY / "chart", "--values", file)
            kinds.update(re.findall(r"^kind: (\w+)", manifests, re.MULTILINE))
            run(BIN / "kubeconform", "-strict", "-schema-location", location, given=manifests)
            check_deployment(manifests, values)
    gateway = (DEPLOY / "gateway.yaml").read_text("utf-8")
    run(BIN / "kubeconform", "-strict", "-schema-location", location, given=gateway)
    for name in (
        "MILLSTREAM_ALLOWED_HOSTS",
        "FORWARDED_ALLOW_IPS",
        "MILLSTREAM_DRAIN_DELAY",
        "MILLSTREAM_DRAIN_TIMEOUT",
    ):
        check_refused(name, folder)
    return f"{', '.join(sorted(kinds))} with {len(VALUES)} sets of values, as {KUBERNETES} describes them"


def compose() -> str:
    """Read the compose file. tests/deploy checks its variables."""
    run(BIN / "cmd", "-no-interpolation", "compose.yaml", where=DEPLOY)
    return "read by the loader of Docker Compose"


def dockerfiles() -> str:
    """Lint the Dockerfiles."""
    for file, without in DOCKERFILES.items():
        run(BIN / "hadolint", *(f"--ignore={rule}" for rule in without), file)
    return f"{len(DOCKERFILES)} files without a warning"


def traefik() -> str:
    """Read the routes of the example. An unknown key is an error."""
    run(BIN / "traefikcheck", ROOT / "examples" / "traefik" / "millstream.yaml")
    return "read by the types of Traefik"


def workflows() -> str:
    """Lint the GitHub workflows, and search them for vulnerabilities."""
    files = sorted(ROOT.glob(".github/workflows/*.yml"))
    run(BIN / "actionlint", *files)
    run(BIN / "zizmor", "--offline", ".github")
    return f"{len(files)} read without a complaint"


def main() -> None:
    """Run every check."""
    install()
    with tempfile.TemporaryDirectory() as name:
        print(f"Helm chart: {chart(Path(name))}", flush=True)
    print(f"Compose file: {compose()}")
    print(f"Dockerfiles: {dockerfiles()}")
    print(f"Traefik: {traefik()}")
    print(f"Workflows: {workflows()}")


if __name__ == "__main__":
    main()
