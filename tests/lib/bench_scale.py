"""The measurement of tests/bench by the number of users. Runs in a box, once for each number."""

import glob
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from statistics import median

from bench_logins import resolver_cpu
from bench_table import Table, resolver, wait_until

MAP = Path("/run/pam_iam/map/nss.map")
CACHE = Path("/var/cache/pam_iam/cache.json")
REPEATS = 5
# The bars are for 50,000 users.
MANY = 50_000


def status():
    said = subprocess.run(["iamctl", "status", "--json"], capture_output=True, text=True, check=False)
    return json.loads(said.stdout) if said.returncode == 0 else {}


def memory(field):
    """The resolver's memory in MiB, by a field of /proc/PID/status."""
    return int(re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{resolver()}/status").read_text())[1]) / 1024


def lookups(user):
    """The microseconds of a getpwnam(3) of the NSS module: the first of a process, and one of many."""
    library = glob.glob("/usr/lib/*/libnss_iam.so.2")[0]
    program = Path(__file__).parents[2] / "target/nss_bench"
    gid = subprocess.check_output(["id", "-g", user], text=True).strip()
    runs = []
    for _ in range(REPEATS):
        words = subprocess.check_output([program, library, "iam", "passwd", user, gid, "20000", "1"], text=True).split()
        runs.append((float(words[0]) / 1000, float(words[1]) / 1000))
    return [median(column) for column in zip(*runs)]


def shown(users):
    """How many of the users NSS shows to a user other than root, for whom the resolver makes no call to IAM."""
    script = f"""import pwd
def is_shown(name):
    try:
        return pwd.getpwnam(name).pw_uid > 0
    except KeyError:
        return False
print(sum(is_shown(f"user{{number}}") for number in range({users})))"""
    return int(subprocess.check_output(["setpriv", "--reuid=65534", "--clear-groups", "python3", "-I", "-c", script]))


def written_again():
    """The milliseconds of processor time in which the resolver makes the map again that was removed."""
    times = []
    for _ in range(REPEATS):
        before = resolver_cpu()
        MAP.unlink()
        wait_until("the map", MAP.exists)
        times.append((resolver_cpu() - before) * 1000)
        # The next one would wait for its turn.
        time.sleep(2)
    return median(times)


def started():
    """The milliseconds from the end of a resolver to the first answer of the next, which has the cache of the first."""
    times = []
    for _ in range(3):
        wait_until("the cache on disk", CACHE.exists)
        old = resolver()
        os.kill(old, signal.SIGKILL)
        start = time.perf_counter()
        wait_until("the next resolver", lambda: status().get("roster_age") is not None)
        times.append((time.perf_counter() - start) * 1000)
    return median(times)


def scale():
    users = int(os.environ["BENCH_USERS"])
    # Some have no account, since an older user has the uid.
    wait_until("the roster", lambda: status().get("roster_users", 0) >= users * 0.99, 300)
    wait_until("the map", lambda: subprocess.run(["getent", "passwd", f"user{users - 1}"], stdout=subprocess.DEVNULL,
                                                 check=False).returncode == 0)
    bars = users == MANY
    table = Table(f"{users} users")
    table.add("map", MAP.stat().st_size / 1e6, bar=12 if bars else None, unit="MB")
    table.add("to write it, processor time", written_again(), bar=150 if bars else None, unit="ms")
    first, known = lookups(f"user{users // 2}")
    table.add("getpwnam, known", known, bar=15 if bars else None)
    table.add("getpwnam, the first of a process", first)
    table.add("the resolver's memory", memory("VmRSS"), unit="MB")
    table.add("the resolver's memory, peak", memory("VmHWM"), unit="MB")
    table.add("killed, until the next one answers", started(), unit="ms")
    table.add("users who get no account, since an older one has the uid", users - shown(users), unit="")
    table.show()
