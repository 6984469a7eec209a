"""``millstream completion``: scripts that complete commands, options, choices, files, a file's tools, and arguments."""

import os
import re
import sys
from pathlib import Path
from typing import Literal, get_args

from millstream._app.server_process import CommandError
from millstream._cli.install import PRINTED
from millstream._cli.program import program
from millstream.client._applications import APPLICATIONS

Shell = Literal["bash", "zsh", "fish"]

_ITEMS = {
    # Text from the server isn't expanded: compgen -W would run $(…) in it.
    "bash": r"""
_millstream_items() {
  local line="${COMP_LINE:0:COMP_POINT}" current="" wanted=tool kind name rest quoted
  local -a typed
  read -ra typed <<< "$line"
  if [[ -n $line && $line != *[[:space:]] ]]; then
    current="${typed[${#typed[@]}-1]}"
    unset "typed[${#typed[@]}-1]"
  fi
  if [[ ! "${#typed[@]} ${typed[1]}" =~ ^(3 prompt|([3-9]|..+) call)$ || ! ${typed[2]} =~ \.py(:[^:]*)?$ ||
        $current == -* || ${typed[${#typed[@]}-1]} == -* || ! -f ${typed[2]%:*} ]]; then
    _millstream "$@"
    return
  fi
  [[ ${typed[1]} == prompt ]] && wanted=prompt
  [[ ${#typed[@]} == 3 ]] || wanted=argument
  COMPREPLY=()
  while IFS=$'\t' read -r kind name rest; do
    [[ $kind == argument && $current != *=* ]] && { name="${name%%=*}="; compopt -o nospace; }
    [[ $kind == "$wanted" && $name == "$current"* ]] || continue
    printf -v quoted '%q' "${name#"${current%"$2"}"}"  # readline completes what stands after = or :
    COMPREPLY+=("$quoted")
  done < <("$1" list "${typed[2]}" ${typed[3]:+--tool "${typed[3]}"} 2> /dev/null < /dev/null)
}
complete -o bashdefault -o default -F _millstream_items millstream
""",
    "zsh": r"""
_millstream_items() {
  local file=${(Q)words[2]} kind name rest
  local -a names tool end
  [[ $file =~ '\.py(:[^:]*)?$' && -f ${file%:*} ]] || return 1
  [[ $1 == argument ]] && tool=(--tool "${(Q)words[3]}")
  while IFS=$'\t' read -r kind name rest; do
    [[ $1 == argument && $PREFIX != *=* ]] && name="${name%%=*}=" end=(-S '')
    [[ $kind == $1 ]] && names+=("$name")
  done < <(${(Q)_comp_command1:-millstream} list $file $tool 2> /dev/null < /dev/null)
  compadd "${end[@]}" -a names
}

if [[ $zsh_eval_context[-1] == *func ]]; then  # zsh loaded it from fpath, under any name
  _millstream "$@"
else
  compdef _millstream millstream
fi
""",
    "fish": r"""
function __millstream_items
    set -l words (commandline -opc)
    string match -qr -- '\.py(:[^:]*)?$' $words[3]; or return
    test -f (string replace -r -- ':[^:]*$' '' $words[3]); or return
    set -l tool
    test $argv[1] = argument; and set tool --tool $words[4]
    set -l value '^([^\t=]*=)[^\t]*'
    string match -q '*=*' -- (commandline -ct); and set value '$^'
    $words[1] list $words[3] $tool 2> /dev/null < /dev/null | string replace -rf "^$argv[1]\t" '' \
        | string replace -r $value '$1'
end
complete -c millstream \
    -n '__fish_millstream_using_command call; and test (__fish_millstream_positional_index 1) = 1' \
    -f -a '(__millstream_items tool)'
complete -c millstream \
    -n '__fish_millstream_using_command prompt; and test (__fish_millstream_positional_index 1) = 1' \
    -f -a '(__millstream_items prompt)'
complete -c millstream \
    -n '__fish_millstream_using_command call; and test (__fish_millstream_positional_index 1) -ge 2' \
    -f -a '(__millstream_items argument)'
""",
}
"""Shell -> code that completes the names of a file's tools or prompts, and the arguments of a tool."""
_ZSH_VALUE = re.compile(r"^( +'(?:\d+|\*|\*?-[\w-]+\[(?:[^\]\\]|\\.)*\]):(?:[^:\\]|\\.)*)(?=' \\$)", re.MULTILINE)
"""Matches an argument, or the value of an option, without an action that completes it."""


def completion(shell: Shell | None = None, /, *, install: bool = False) -> None:
    """Print a script that completes commands, options, choices, files, and a file's tools in your shell, or install it.

    To complete a tool or its arguments, it runs the file.

    **Examples**

    - `millstream completion --install`

    - `millstream completion bash > /etc/bash_completion.d/millstream`: for all users

    Args:
        shell: Your shell: bash, zsh, or fish. Detected from SHELL by default.
        install: Install it in your shell's folder.
    """
    app, own = program(), Path(os.environ.get("SHELL", "")).name
    chosen: Shell | None = shell or next((each for each in get_args(Shell) if each == own), None)
    if chosen is None:
        raise CommandError("Your shell couldn't be detected.", fix="Specify it: bash, zsh, or fish.")
    script = _complete_files(app.generate_completion(prog_name="millstream", shell=chosen), chosen)
    if not install:
        sys.stdout.write(script)
        return
    try:
        path = app.install_completion(shell=chosen)
        path.write_text(script, "utf-8")
    except OSError as exc:
        raise CommandError(f"{exc.filename} can't be written: {exc.strerror}.") from exc
    print(f"Wrote {path}. Open a new shell to use it.")
    rc = Path.home() / ".zshrc"
    if chosen == "zsh" and not (rc.exists() and re.search("compinit|oh-my-zsh", rc.read_text("utf-8", "replace"))):
        print("If your .zshrc doesn't load completions yet, add this line at its end: autoload -U compinit && compinit")


def _complete_files(script: str, shell: Shell) -> str:
    """Return a script that completes a file's tools, and files wherever nothing else is known, as fish does."""
    applications = " ".join([*APPLICATIONS, PRINTED])
    if shell == "bash":  # compgen splits names with spaces; the shell's own completion doesn't
        script = script.replace('COMPREPLY=( $(compgen -f -- "${cur}") )', "COMPREPLY=()")
        chosen = f'( $(compgen -W "{applications}" -- "$cur") )'
        script = re.sub(r"(--client\)\n *COMPREPLY=)\(\)", lambda found: found[1] + chosen, script)
        return re.sub(r"complete -F _millstream millstream\n$", "", script) + _ITEMS[shell]
    if shell == "zsh":
        script = script.replace(":client'", f":client:({applications})'")
        script = _ZSH_VALUE.sub(r"\1:_default", script)
        for name, place, kind in (("call", "2", "tool"), ("call", r"\*", "argument"), ("prompt", "2", "prompt")):
            own_part = re.compile(rf"^( {{8}}{name}\)\n(?:.*\n)*?.* '{place}:.*:)_default(?=')", re.MULTILINE)
            script = own_part.sub(rf"\1 _millstream_items {kind}", script)
        script = script.replace("_cyclopts_millstream", "_millstream")
        return script.rstrip() + "\n" + _ITEMS[shell]
    return script.replace("-l client -r", f"-l client -x -a '{applications}'") + _ITEMS[shell]
