"""Print the lower bound of every dependency in pyproject.toml, as pins for pip."""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    name, bound = re.fullmatch(r"([A-Za-z0-9_.\-]+)(?:\[[^\]]*\])?>=([^,;\s]+).*", requirement).groups()
    if name != "torch":  # installed before, from the build that fits the machine
        print(f"{name}=={bound}.*" if bound.count(".") < 2 else f"{name}=={bound}")
