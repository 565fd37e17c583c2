"""Completion scripts for shells: the jobs, their options, and the keys of the configuration with their choices.

A script holds all words itself, so that completing starts no Python.
"""

from collections.abc import Mapping

from distmil.config.description import key_choices

OPTIONS = {
    "--print-config": "Print the configuration and run nothing",
    "--dry-run": "Show what would be done and how long",
    "--help-all": "Print every key",
    "--version": "Print the versions",
}
"""Options of the jobs, beside --config and --help."""

_BASH = r"""# bash completion of distmil: source <(distmil completion bash)
_distmil() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} key= prefix= words
    if [[ $word == *=* && $word != = ]]; then  # "=" does not split words in this shell
        key=${word%%=*} prefix=${word%%=*}= word=${word#*=}
    elif [[ $word == = ]]; then
        key=$before word=
    elif [[ $before == = ]]; then
        key=${COMP_WORDS[COMP_CWORD-2]}
    elif [[ $before == --config ]]; then
        key=$before
    fi
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        words="@names@ --help --version"
    elif [[ ${COMP_WORDS[1]} == completion ]]; then
        words="bash zsh fish"
    elif [[ $key == --config ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
    elif [[ -n $key ]]; then
        case $key in
@cases@
        esac
    elif [[ $word == -* ]]; then
        words="--config --help @options@"
        [[ ${COMP_WORDS[1]} == doctor ]] && words="--config --help --ray"
        [[ ${COMP_WORDS[1]} == store ]] && words="--config --help --remove --force --yes"
    else
        words="@keys@"
        compopt -o nospace 2>/dev/null
    fi
    mapfile -t COMPREPLY < <(compgen -P "$prefix" -W "$words" -- "$word")
}
complete -F _distmil distmil
"""

_ZSH = r"""#compdef distmil
# zsh completion of distmil: source <(distmil completion zsh), after compinit
_distmil() {
    local -a names values
    names=(@described@)
    if (( CURRENT == 2 )); then
        _describe job names
        compadd -- --help --version
    elif [[ $words[2] == completion ]]; then
        compadd -- bash zsh fish
    elif [[ $words[CURRENT-1] == --config ]]; then
        _files
    elif [[ $PREFIX == *=* ]]; then
        local key=${PREFIX%%=*}
        compset -P '*='
        case $key in
            --config) _files; return ;;
@cases@
        esac
        compadd -- $values
    elif [[ $PREFIX == -* ]]; then
        compadd -- --config --help
        if [[ $words[2] == doctor ]]; then compadd -- --ray
        elif [[ $words[2] == store ]]; then compadd -- --remove --force --yes
        else compadd -- @options@; fi
    else
        compadd -S '' -- @keys@
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _distmil "$@"; else compdef _distmil distmil; fi
"""

_FISH = r"""# fish completion of distmil: distmil completion fish | source
complete -c distmil -f
@described@
complete -c distmil -n __fish_use_subcommand -l version -d 'Print the version'
complete -c distmil -l help -s h -d 'Print the help'
complete -c distmil -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'
complete -c distmil -n '__fish_seen_subcommand_from @jobs@' -l config -r -F -d 'Configuration file'
@options@
complete -c distmil -n '__fish_seen_subcommand_from doctor' -l ray -d 'Start a local Ray too'
complete -c distmil -n '__fish_seen_subcommand_from store' -l remove -x -d 'Name of the list, or unused'
complete -c distmil -n '__fish_seen_subcommand_from store' -l force -d 'Remove what is used, too'
complete -c distmil -n '__fish_seen_subcommand_from store' -l yes -d 'Remove without asking'
complete -c distmil -n '__fish_seen_subcommand_from @jobs@' -a '@keys@'
"""


def script(shell: str, jobs: Mapping[str, str], tools: Mapping[str, str]) -> str:
    """Write the completion script of a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
        jobs: Description of each job by its name.
        tools: The same of each tool; ``store`` and ``doctor`` take the jobs' arguments, too.
    """
    choices, options = key_choices(), " ".join(OPTIONS)
    everything = {**jobs, **tools}
    values = {key: " ".join(words) for key, words in choices.items() if words}
    if shell == "bash":
        cases = [f"            {key}) words={words!r} ;;" for key, words in values.items()]
        keys = " ".join(f"{key}=" for key in choices)
        return _fill(_BASH, names=" ".join(everything), cases="\n".join(cases), keys=keys, options=options)
    if shell == "zsh":
        cases = [f"            {key}) values=({words}) ;;" for key, words in values.items()]
        described = " ".join(f"'{name}:{text}'" for name, text in everything.items())
        keys = " ".join(f"{key}=" for key in choices)
        return _fill(_ZSH, described=described, cases="\n".join(cases), keys=keys, options=options)
    lines = [f"complete -c distmil -n __fish_use_subcommand -a {n} -d '{text}'" for n, text in everything.items()]
    pairs = [f"{key}={word}" for key, words in choices.items() for word in words or [""]]
    flags = [
        f"complete -c distmil -n '__fish_seen_subcommand_from {' '.join(jobs)}' -l {option[2:]} -d '{text}'"
        for option, text in OPTIONS.items()
    ]
    return _fill(
        _FISH,
        described="\n".join(lines),
        options="\n".join(flags),
        jobs=" ".join([*jobs, "store", "doctor"]),
        keys=" ".join(pairs),
    )


def _fill(template: str, **words: str) -> str:
    """Put words into a template in place of their names between two @."""
    for name, text in words.items():
        template = template.replace(f"@{name}@", text)
    return template
