"""Help: from the functions' own docstrings and signatures."""

from __future__ import annotations

import inspect
import re
import textwrap

from monai_ssl.cli.commands import COMMANDS, PROGRAM, Command


def overview() -> str:
    """What ``monai-ssl --help`` shows."""
    lines = [
        "Semi-supervised medical image segmentation. Train on a few annotated scans and many that are not, with "
        "published methods, as MONAI bundles.",
        "",
        f"usage: {PROGRAM} COMMAND ...",
        "",
    ]
    for name, command in COMMANDS.items():
        summary = (inspect.getdoc(command.function) or "").splitlines()[0]
        lines += textwrap.wrap(summary, 100, initial_indent=f"  {name:<11} ", subsequent_indent=" " * 14)
    lines += [
        "",
        f"  {PROGRAM} COMMAND --help    arguments of a command",
        f"  {PROGRAM} --version",
        "",
        f"A first look:    {PROGRAM} demo",
        f"Your own data:   {PROGRAM} split, check, train, evaluate, predict",
    ]
    return "\n".join(lines)


def command_help(command: Command) -> str:
    """What ``monai-ssl COMMAND --help`` shows."""
    sections = _sections(inspect.getdoc(command.function) or "")
    lines = [f"usage: {command.usage}", "", sections[""].replace("`", "").strip()]
    if not command.parameters:
        return "\n".join(lines)
    lines += ["", "arguments:"]
    shown = {parameter.name: name for name, parameter in command.parameters.items()}
    # an entry begins at the section's own indentation; deeper lines continue it
    for entry in re.sub(r"\n\s+", " ", textwrap.dedent(sections.get("Args", "")).strip()).split("\n"):
        key, _, about = entry.partition(": ")
        about = about.replace("`", "")
        if key.startswith("**"):
            name = "--ID VALUE"
        else:
            parameter = command.parameters[shown[key]]
            required = parameter.default is inspect.Parameter.empty
            name = shown[key].upper() if required else f"--{shown[key]}"
            if not required and parameter.default is not None and not isinstance(parameter.default, bool):
                default = parameter.default
                text = ",".join(map(str, default)) if isinstance(default, (tuple, list)) else default
                about += f" (default: {text})"
        lines += textwrap.wrap(about, 110, initial_indent=f"  {name:<17} ", subsequent_indent=" " * 20)
    if command.example:
        lines += ["", f"example: {PROGRAM} {command.example}"]
    return "\n".join(lines)


def _sections(documentation: str) -> dict[str, str]:
    """A Google-style docstring by its headings; the text before the first heading under ``""``."""
    found = {"": ""}
    heading = ""
    for line in documentation.splitlines():
        match = re.fullmatch(r"(Args|Returns|Raises|Example|Yields|Attributes):", line)
        if match:
            heading = match[1]
            found[heading] = ""
        else:
            found[heading] += line + "\n"
    return found
