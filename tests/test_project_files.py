import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import millstream
from cases import for_each

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def workflow(name: str = "checks.yml") -> dict[str, Any]:
    return dict(loaded(ROOT / ".github" / "workflows" / name))


@for_each("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_documented_commands(path: Path) -> None:
    steps = [step for job in workflow(path.name)["jobs"].values() for step in job["steps"] if "run" in step]
    made = [step["run"].split()[1] for step in steps if step["run"].startswith("make ")]
    assert set(made) <= TARGETS
    assert made or path.stem == "codeql"


def test_workflow_checks_everything() -> None:
    steps = [step.get("run", "") for job in workflow()["jobs"].values() for step in job["steps"]]
    made = {each.split()[1] for each in steps if each.startswith("make ")}
    assert {"check", "test", "test-python", "unit", "docs-site", "dist"} <= made


@for_each("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_by_commit(path: Path) -> None:
    used = [step["uses"] for job in workflow(path.name)["jobs"].values() for step in job["steps"] if "uses" in step]
    assert [each for each in used if not re.search(r"@[0-9a-f]{40}$", each)] == []


def test_site_workflow_publishes_the_built_site() -> None:
    jobs = workflow("site.yml")["jobs"]
    (path,) = [step["with"]["path"] for step in jobs["build"]["steps"] if "path" in step.get("with", {})]
    assert path == re.search(r"^site_dir: (\w+)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)[1]  # type: ignore[index]
    assert jobs["deploy"]["needs"] == "build"
    assert "permissions" not in jobs["build"]


def test_workflow_covers_every_python_and_system() -> None:
    jobs = workflow()["jobs"]
    promised = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", each)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    assert jobs["unit"]["strategy"]["matrix"]["python"] == promised
    systems = [jobs["test"]["runs-on"], *jobs["unit"]["strategy"]["matrix"]["system"]]
    assert [system.partition("-")[0] for system in systems] == ["ubuntu", "macos", "windows"]


@for_each("page", ["CONTRIBUTING.md", "docs/contributing/releasing.md", ".github/pull_request_template.md"])
def test_contributing_page_mentions_existing_commands(page: str) -> None:
    named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)", (ROOT / page).read_text("utf-8"), re.MULTILINE))
    assert named
    assert named <= TARGETS


@for_each("page", ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CHANGELOG.md"])
def test_project_file_links_resolve(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


@for_each("form", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.stem)
def test_issue_forms_are_valid(form: Path) -> None:
    """https://docs.github.com/communities"""
    content = loaded(form)
    assert content["name"]
    assert content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_dependabot_reads_every_lock_file() -> None:
    """https://docs.github.com/code-security/dependabot: pip reads .txt files of up to 500,000 bytes in its folder."""
    updates = {each["package-ecosystem"]: each for each in loaded(ROOT / ".github" / "dependabot.yml")["updates"]}
    locks = [path for path in ROOT.glob(updates["pip"]["directory"].lstrip("/") + "/*") if path.is_file()]
    assert len(locks) > 5
    assert [path.name for path in locks if path.suffix != ".txt" or path.stat().st_size > 500_000] == []
    node = (ROOT / "scripts" / "lock").read_text("utf-8").split("node_folders=(")[1].split(")")[0].split()
    assert sorted(updates["npm"]["directories"]) == sorted(f"/{folder}" for folder in node)


def test_cited_decisions_exist_and_are_about_what_cites_them() -> None:
    pages = {each.name[:4]: each for each in (ROOT / "docs" / "decisions").glob("0*.md")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    roots = ("src/", "scripts/", "benches/", "tests/", "examples/", "deploy/", ".github/", "Makefile", "pyproject.toml")
    cited = 0
    for name in tracked:
        path = ROOT / name
        if not name.startswith(roots) or path.suffix not in ("", ".py", ".md", ".toml", ".yml", ".js") or path.is_dir():
            continue
        lines = path.read_text("utf-8", "replace").splitlines()
        for at, line in enumerate(lines):
            for number in re.findall(r"decisions?[/ ](\d{4})", line):
                cited += 1
                assert number in pages, f"{name}:{at + 1}"
                title = pages[number].read_text("utf-8").partition("\n")[0]
                topic = {word[:4] for word in re.findall(r"[a-z]{4,}", f"{title} {pages[number].stem}".lower())}
                near = " ".join([name, *lines[max(0, at - 3) : at + 2]]).lower()
                near = re.sub(r"\d{4}-[\w-]+", "", near)
                assert topic & {word[:4] for word in re.findall(r"[a-z]{4,}", near)}, (
                    f"{name}:{at + 1} is about another"
                )
    assert cited > 8


def test_pre_commit_hooks_match_make_check() -> None:
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        tool, *rest = hook["entry"].split()
        assert tool.startswith(".venv/bin/")
        assert f"$(BIN)/{tool.removeprefix('.venv/bin/')} {rest[0] if rest else ''}".strip() in MAKEFILE


def test_version_is_the_same_everywhere() -> None:
    version = millstream.__version__
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    chart = loaded(ROOT / "deploy" / "chart" / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_changelog_has_the_documented_form() -> None:
    """docs/contributing/releasing.md"""
    form = (ROOT / "docs" / "contributing" / "releasing.md").read_text("utf-8")
    versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    parts = ["Added", "Changed", "Fixed", "Security", "Known limits"]
    assert re.findall(r"^ +- \*\*(\w+)\*\*:", form, re.MULTILINE) == parts[:-1]
    assert versions
    for section in versions:
        title, *lines = section.strip().splitlines()
        assert re.fullmatch(r"\d+\.\d+\.\d+ \((not released|\d{4}-\d\d-\d\d)\)", title)
        named = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
        assert named == [part for part in parts if part in named]
        assert len(lines) <= 30
        assert [line for line in lines if line.startswith("- ") and "](docs/" not in line] == []


@for_each("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_request_few_permissions(path: Path) -> None:
    assert workflow(path.name)["permissions"] in ({}, {"contents": "read"})


def test_release_publishes_only_tested_files() -> None:
    jobs = loaded(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert set(jobs["package"]["needs"]) == {"build", "wheel", "image"}
    assert jobs["publish-image"]["needs"] == "package"
    for name, job in jobs.items():
        publishes = "id-token" in job.get("permissions", {})
        assert publishes == ("if" in job) == (name in ("package", "publish-image"))
        assert not publishes or job["if"] == "github.ref_type == 'tag'"
