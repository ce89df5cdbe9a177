"""Runs ``python -m monai.bundle ...`` commands without paying for the imports each time.

A process that has imported everything and computed nothing forks once per command; the child then does what
``python -m monai.bundle`` does in a new interpreter: same arguments, same working directory, own exit status. Requests
come as JSON lines ``{"arguments", "folder", "log", "environments"}`` on stdin: a child for each dictionary of
environment variables, as ``torchrun`` starts its processes. Each request is answered by a line with the exit status.
"""

import json
import os
import runpy
import sys
import traceback

import monai.bundle
import monai.engines
import monai.handlers
import monai.inferers
import monai.metrics  # noqa: F401

import monai_ssl.data
import monai_ssl.engines
import monai_ssl.handlers
import monai_ssl.methods  # noqa: F401


def execute(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> int:
    os.environ.update(environment)
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = ["monai.bundle", *arguments]
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for environment in request.pop("environments"):
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                sys.exit(execute(**request, environment=environment))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next((code for code in codes if code), 0), flush=True)
