"""The command line: ``monai-ssl ...`` and ``python -m monai_ssl ...``."""

from monai_ssl.cli.commands import COMMANDS, Command
from monai_ssl.cli.dispatch import main
from monai_ssl.cli.parsing import parse

__all__ = ["COMMANDS", "Command", "main", "parse"]
