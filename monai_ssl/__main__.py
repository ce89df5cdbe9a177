"""``python -m monai_ssl``."""

from monai_ssl.cli import main

main()
