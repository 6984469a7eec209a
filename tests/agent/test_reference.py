import inspect
import re

import millstream.agent
from millstream.agent import Agent, LanguageModel, Limits, ServerConfig
from millstream.agent import _events as events
from scripts.docs import ROOT

PAGE = (ROOT / "docs" / "reference" / "agent.md").read_text("utf-8")
ROWS = {
    line.split("`")[1]: [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| `")
}


def test_every_public_name_is_listed() -> None:
    words = set(re.findall(r"\w+", PAGE))
    assert set(millstream.agent.__all__) <= words
    assert {name for name in millstream.agent.__all__ if not hasattr(millstream.agent, name)} == set()


def test_every_agent_argument_and_member_is_listed() -> None:
    assert set(inspect.signature(Agent).parameters) <= set(ROWS)
    named = {name.partition("(")[0] for name in re.findall(r"`(?:await )?agent\.([\w(]+)", PAGE)}
    own = set(re.findall(r"self\.([a-z]\w*)\b(?:: [^=]+)? = |self\.([a-z]\w*), ", inspect.getsource(Agent.__init__)))
    members = {name for name, _ in inspect.getmembers(Agent) if not name.startswith("_")}
    assert named == members | {first or second for first, second in own}


def test_every_limit_is_listed_with_its_default() -> None:
    listed = {name: ROWS[name][1] for name in Limits.__struct_fields__}
    assert listed == {name: f"`{getattr(Limits(), name):g}`" for name in Limits.__struct_fields__}


def test_every_event_and_error_is_listed() -> None:
    kinds = [kind for kind in vars(events).values() if inspect.isclass(kind) and issubclass(kind, events.AgentEvent)]
    for kind in kinds[1:]:
        assert {f"`{name}`" for name in kind.__struct_fields__} <= set(
            re.findall(r"`\w+`", " ".join(ROWS[kind.__name__]))
        )
    faults = {
        name for name, kind in vars(events).items() if inspect.isclass(kind) and issubclass(kind, events.AgentError)
    }
    assert faults <= set(ROWS)


def test_model_and_server_arguments_are_listed() -> None:
    for made in (LanguageModel, ServerConfig):
        line = next(line for line in PAGE.splitlines() if line.startswith(f"`{made.__name__}("))
        assert set(inspect.signature(made).parameters) <= set(re.findall(r"\w+", line.partition("`:")[0]))
