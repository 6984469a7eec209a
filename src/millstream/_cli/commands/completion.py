"""``millstream completion``: a script that completes commands, options and files in a shell.

The script has everything in it, so completing starts no program. Make it again after an upgrade.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from enum import Enum, EnumType, StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from msgspec import Struct

from millstream._app.serving.errors import CommandError
from millstream._cli.commands.install import PRINTED
from millstream._cli.help import COMMANDS
from millstream._cli.installing.applications import APPLICATIONS
from millstream._cli.showing import print_text


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


class Option(Struct, frozen=True):
    """One option of a command."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    takes_value: bool


class Command(Struct, frozen=True):
    """One command: ``run``, or ``keys add``."""

    name: str
    options: tuple[Option, ...]
    words: tuple[str, ...]
    """Commands below it."""


CHOICES: Mapping[str, tuple[str, ...]] = {"install --client": (*APPLICATIONS, PRINTED)}
"""Values of options that aren't enumerations."""


def completion(
    context: typer.Context,
    shell: Annotated[
        Shell | None,
        typer.Argument(metavar="SHELL", help="Your shell: bash, zsh or fish.", show_default="what SHELL says"),
    ] = None,
    *,
    install: Annotated[bool, typer.Option("--install", help="Put it where your shell finds it.")] = False,
) -> None:
    """Print a script that completes commands, options and files in your shell, or install it.

    **Examples**

    - `millstream completion --install`

    - `millstream completion bash > /etc/bash_completion.d/millstream`: for everybody
    """
    chosen = shell or _own_shell()
    text = script(chosen, commands(context.find_root().command))
    if not install:
        sys.stdout.write(text)
        return
    path, afterwards = place(chosen, os.environ, Path.home())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise CommandError(f"{path} can't be written: {exc.strerror}.") from exc
    print_text(f"Wrote {path}. {afterwards}")


def _own_shell() -> Shell:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in list(Shell):
        raise CommandError("It isn't clear which shell you use.", fix="Name it: bash, zsh or fish.")
    return Shell(name)


def place(shell: Shell, variables: Mapping[str, str], home: Path) -> tuple[Path, str]:
    """Where a shell looks for scripts, and what's to do then."""
    data = Path(variables.get("XDG_DATA_HOME") or home / ".local" / "share")
    settings = Path(variables.get("XDG_CONFIG_HOME") or home / ".config")
    if shell is Shell.bash:
        return data / "bash-completion" / "completions" / "millstream", "It works in new shells (with bash-completion)."
    if shell is Shell.fish:
        return settings / "fish" / "completions" / "millstream.fish", "It works at once."
    folder = Path(variables.get("ZDOTDIR") or home) / ".zfunc"
    return folder / "_millstream", f"Put this before compinit in .zshrc, if it isn't there: fpath+={folder}"


def commands(program: Any) -> list[Command]:
    """Every command of the program, the program itself (without a name) first."""
    top, *others = _below(program, "")
    return [Command("", top.options, (*top.words, "help")), *others]


def _below(command: Any, name: str) -> Iterator[Command]:
    below: dict[str, Any] = getattr(command, "commands", {})
    yield Command(name, tuple(_options(command, name)), tuple(below))
    for each, inner in below.items():
        yield from _below(inner, f"{name} {each}".strip())


def _options(command: Any, name: str) -> Iterator[Option]:
    for parameter in command.params:
        if parameter.param_type_name != "option":
            continue
        names = tuple(cast("list[str]", [*parameter.opts, *parameter.secondary_opts]))
        known = next((CHOICES[f"{name} {each}"] for each in names if f"{name} {each}" in CHOICES), ())
        choices = _choices(parameter) or known
        text = " ".join(str(parameter.help or "").replace("`", "").split())
        yield Option(names, text, choices, not parameter.is_flag)
    yield Option(("--help", "-h"), "Show this message and exit.", (), takes_value=False)


def _choices(parameter: Any) -> tuple[str, ...]:
    """What an option may be. Typer 0.29 keeps the annotation; those before it have a type with choices."""
    found: Any = getattr(getattr(parameter, "type", None), "choices", None)
    if found is None:
        annotation: Any = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        found = _values(cast("type[Enum]", annotation)) if isinstance(annotation, EnumType) else ()
    return tuple(str(each) for each in found)


def _values(kind: type[Enum]) -> list[str]:
    return [str(each.value) for each in kind]


def script(shell: Shell, commands: list[Command]) -> str:
    """The script for a shell."""
    return {Shell.bash: _bash, Shell.zsh: _zsh, Shell.fish: _fish}[shell](commands)


_BASH = """\
# Completes the millstream command in bash. Made by: millstream completion bash
_millstream() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="" word words="" values=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$command $word" in
{paths}
    esac
  done
  case "$command" in
{options}
  esac
  case "$command $before" in
{values}
  esac
  if [[ -n $values ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$values" -- "$current")
  elif [[ $current == -* || ( -n $words && $words != -* ) ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  else
    COMPREPLY=()
  fi
}}
complete -o default -F _millstream millstream
"""


def _bash(commands: list[Command]) -> str:
    paths, options, values = list[str](), list[str](), list[str]()
    for each in commands:
        for word in each.words:
            paths.append(f'      "{each.name} {word}") command="{f"{each.name} {word}".strip()}" ;;')
        names = [name for option in each.options for name in option.names]
        options.append(f'    "{each.name}") words="{" ".join([*each.words, *names])}" ;;')
        for option in each.options:
            if option.choices:
                patterns = "|".join(f'"{each.name} {name}"' for name in option.names)
                values.append(f'    {patterns}) values="{" ".join(option.choices)}" ;;')
    return _BASH.format(paths="\n".join(paths), options="\n".join(options), values="\n".join(values))


def _zsh(commands: list[Command]) -> str:
    lines = ["#compdef millstream", "# Completes the millstream command in zsh. Made by: millstream completion zsh"]
    for each in commands:
        lines += ["", f"_millstream_{_identifier(each.name)}() {{"]
        lines += ["  local context state state_descr line", "  typeset -A opt_args", "  _arguments -s \\"]
        for option in each.options:
            lines += [f"    {_zsh_option(option, name)} \\" for name in option.names]
        if each.words:
            cases = [f"        {word}) _millstream_{_identifier(f'{each.name} {word}')} ;;" for word in each.words]
            cases = [case for case in cases if case.split(") ")[0].strip() != "help"]
            shown = " ".join(_quoted(f"{word}:{_about(each.name, word)}") for word in each.words)
            lines += ["    '1: :->command' '*:: :->rest'", "  case $state in", "    command)"]
            lines += [f"      local -a words_; words_=({shown})", "      _describe -t commands command words_ ;;"]
            lines += ["    rest)", "      case $line[1] in", *cases, "      esac ;;", "  esac", "}"]
        else:
            lines += ["    '*:file:_files'", "}"]
    return "\n".join([*lines, "", '_millstream_ "$@"', ""])


def _zsh_option(option: Option, name: str) -> str:
    text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    value = ""
    if option.takes_value:
        value = f":value:({' '.join(option.choices)})" if option.choices else ":value:_files"
    return _quoted(f"*{name}[{text}]{value}")


def _fish(commands: list[Command]) -> str:
    lines = ["# Completes the millstream command in fish. Made by: millstream completion fish"]
    for each in commands:
        chosen = each.name.split()
        seen = [f"__fish_seen_subcommand_from {word}" for word in chosen]
        if each.words:
            after = f"not __fish_seen_subcommand_from {' '.join(each.words)}"
            where = "; and ".join([*seen, after])
            for word in each.words:
                about = _quoted(_about(each.name, word))
                lines.append(f"complete -c millstream -f -n {_quoted(where)} -a {word} -d {about}")
        where = "; and ".join(seen) if seen else f"not __fish_seen_subcommand_from {' '.join(each.words)}"
        for option in each.options:
            flags = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r" * option.takes_value
            lines.append(f"complete -c millstream -n {_quoted(where)} {flags}{value} -d {_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _about(group: str, word: str) -> str:
    return "" if group else next((about[word] for about in COMMANDS.values() if word in about), "")


def _identifier(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


def _quoted(text: str) -> str:
    """For a shell. The three agree on single quotes, but not on how one stands inside: so none does."""
    return "'" + text.replace("'", "\u2019") + "'"
