"""What the measurements of tests/bench share: a table with bars, and a few ways to measure."""

import json
import os
import subprocess
import time


class Table:
    """Rows of a value, the value of the other system, and a bar; at the end a verdict and the same as JSON."""

    def __init__(self, title, other=""):
        self.title, self.other, self.rows = title, other, []

    def add(self, what, value, other=None, bar=None, unit="us", at_least=False):
        """`bar` is the greatest value that is good enough, or with `at_least` the least. None if there is no bar."""
        self.rows.append({"what": what, "value": value, "other": other, "bar": bar, "unit": unit, "at_least": at_least})

    def show(self):
        print(self.title)
        print(f"{'':46}{'pam_iam':>14}{self.other:>14}{'bar':>14}")
        for row in self.rows:
            other = "" if row["other"] is None else f"{row['other']:.2f} {row['unit']}"
            sign = ">=" if row["at_least"] else "<="
            bar = "" if row["bar"] is None else f"{sign} {row['bar']:.2f} {row['unit']}"
            good = row["bar"] is None or (row["value"] >= row["bar"] if row["at_least"] else row["value"] <= row["bar"])
            row["met"] = good
            value = f"{row['value']:.2f} {row['unit']}"
            print(f"{row['what']:46}{value:>14}{other:>14}{bar:>14}{'' if good else '  MISSED'}")
        print("JSON " + json.dumps({"title": self.title, "other": self.other, "rows": self.rows}))


def seconds(command, **kwargs):
    """How long a command takes. One that fails ends the measurement."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   **kwargs)
    return time.perf_counter() - start


def control(query):
    """Sends a command to the box's IAM, and returns what it says."""
    return json.loads(subprocess.check_output(["curl", "-sSf", f"{os.environ['BOX_CTL']}?{query}"]))


def calls():
    """The calls that the box's IAM has received since it was last cleared."""
    return [call for call in control("log")["calls"] if call["action"] != "IMDS"]


def wait_until(what, condition, patience=60):
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {patience} s")
        time.sleep(0.01)


def resolver():
    """The pid of the resolver."""
    return int(subprocess.check_output(["pgrep", "-x", "iam-resolver"], text=True))
