"""Runs commands in a box for the end-to-end tests: one JSON request a line, one JSON answer a line."""

import json
import os
import subprocess
import sys

LIMIT_SECONDS = 900
# Of a box that booted, the agent is beside it.
ENTER = ["box-enter"] if os.environ.get("BOX_BOOTED") else []

for line in sys.stdin:
    request = json.loads(line)
    try:
        enter = [] if request.get("beside") else ENTER
        done = subprocess.run(enter + request["argv"], capture_output=True, text=True, errors="replace",
                              input=request.get("stdin", ""), timeout=LIMIT_SECONDS,
                              # Every user may be there, wherever the repository lies.
                              cwd="/")
        answer = {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    except subprocess.TimeoutExpired:
        answer = {"status": 124, "stdout": "", "stderr": f"took more than {LIMIT_SECONDS} s"}
    print(json.dumps(answer), flush=True)
