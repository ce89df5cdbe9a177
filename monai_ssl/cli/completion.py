"""Completion of commands, options and names in bash and zsh."""

from __future__ import annotations

import inspect

from monai_ssl.errors import PROGRAM

SCRIPT = """\
# Completion for {program}: eval "$({program} completion)"
if [ -n "$ZSH_VERSION" ]; then autoload -U +X bashcompinit && bashcompinit; fi
_monai_ssl() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" start="" names="" options=""
    case "${{COMP_WORDS[1]}}" in
{options}
    esac
    case "$before" in
        --methods|--bundles) names="all {methods}" ;;
        --dataset) names="{presets}" ;;
        --references) names="all none {references}" ;;
        --section) names="testing validation training" ;;
        --weights) names="last best" ;;
        --engine) names="local ray slurm" ;;
        --flavor|--flavors) names="literature practical" ;;
        train|bundle) [ "$COMP_CWORD" -eq 2 ] && names="{methods}" ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then names="{commands}"; fi
    # the last of a list: --methods dtc,self_
    if [[ "$word" == *,* ]]; then start="${{word%,*}},"; fi
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    elif [ -n "$names" ]; then
        COMPREPLY=($(compgen -P "$start" -W "$names" -- "${{word##*,}}"))
    fi
}}
complete -o default -F _monai_ssl {program}
"""


def completion() -> str:
    """Print what makes bash or zsh complete commands, options, methods and presets.

    Returns:
        a script; `eval "$(monai-ssl completion)"` in ~/.bashrc or ~/.zshrc takes it in.

    Example:
        >>> "complete -o default -F _monai_ssl monai-ssl" in completion()
        True
    """
    from monai_ssl.bundle.library import available_bundles
    from monai_ssl.cli.commands import COMMANDS
    from monai_ssl.data.preset import available_presets
    from monai_ssl.runs.study.settings import REFERENCES

    options = []
    for name, command in COMMANDS.items():
        kinds = [p for p in command.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        words = " ".join(f"--{parameter.name}" for parameter in kinds)
        options.append(f'        {name}) options="{words}" ;;')
    return SCRIPT.format(
        program=PROGRAM,
        options="\n".join(options),
        methods=" ".join(available_bundles()),
        presets=" ".join(available_presets()),
        references=" ".join(REFERENCES),
        commands=" ".join(COMMANDS),
    )
