"""Runs every operation under one fault, in a box. Called by tests/faults.

Prints a JSON line for each operation: what was expected, what the user saw, how long it took.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HOSTS = Path("/etc/hosts")
CONFIG = Path("/etc/pam_iam/config.toml")
CACHE = Path("/var/cache/pam_iam")
# Nobody listens there.
NOBODY = "127.0.0.9"
LIMIT_RUN = 100


def sh(script, timeout=LIMIT_RUN):
    """What a script says: exit status, its last words, seconds."""
    began = time.monotonic()
    try:
        done = subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=timeout, check=False)
        status, words = done.returncode, (done.stdout + done.stderr).strip().splitlines()
    except subprocess.TimeoutExpired:
        status, words = 124, [f"nothing within {timeout} s"]
    return status, (words or [""])[-1], time.monotonic() - began


def must(script):
    status, words, _ = sh(script)
    if status != 0:
        sys.exit(f"tests/faults: {script}: {words}")
    return words


def control(query):
    urllib.request.urlopen(f"{os.environ['BOX_CTL']}?{query}").read()


def hosts(address):
    """Where the resolver finds the IAM endpoint by its name; nowhere without an address."""
    lines = [line for line in HOSTS.read_text().splitlines() if "iam.box" not in line]
    HOSTS.write_text("\n".join(lines + [f"{address} iam.box"] * bool(address)) + "\n")
    # Connections that are open would outlive the change.
    control("fail=reset")


def resolver(signal):
    must(f"pkill -{signal} -x iam-resolver")


# Says what the resolver itself would say: whoever believes it lets carol in.
SQUATTER = """
import json, os, socket, sys
answers = json.loads(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.bind('/run/pam_iam/resolver.sock')
os.chmod('/run/pam_iam/resolver.sock', 0o666)
listener.listen(100)
while True:
    client = listener.accept()[0]
    try:
        length = int.from_bytes(client.recv(4, socket.MSG_WAITALL), 'big')
        asked = json.loads(client.recv(length, socket.MSG_WAITALL))['ask']
        client.sendall(bytes.fromhex(answers[asked]))
    except (OSError, ValueError, KeyError):
        pass
"""


def ask(request):
    """What the resolver answers, with its length, in hex."""
    body = json.dumps({"v": 1, **request}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/pam_iam/resolver.sock")
        client.sendall(len(body).to_bytes(4, "big") + body)
        return client.makefile("rb").read().hex()


def squat():
    carol = {"name": "carol", "uid": int(Path("/root/carol").read_text())}
    asked = [{"ask": "user-by-name", "name": "carol"}, {"ask": "keys", **carol}, {"ask": "decide", "policy": "login", **carol}]
    answers = {request["ask"]: ask(request) for request in asked}
    if len(answers["keys"]) < 500:
        sys.exit("tests/faults: the resolver gives no keys that the squatter could give")
    must("mv /run/pam_iam/resolver.sock /run/pam_iam/gone; chown nobody /run/pam_iam")
    nobody = ["setpriv", "--reuid", "nobody", "--regid", "65534", "--clear-groups"]
    subprocess.Popen([*nobody, "python3", "-c", SQUATTER, json.dumps(answers)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
    must("until test -S /run/pam_iam/resolver.sock; do sleep 0.02; done")


def full_disk():
    must(f"mount -t tmpfs -o size=64k,mode=700 cache {CACHE}; chown iam-resolver: {CACHE}; ! cat /dev/zero >{CACHE}/full")


def broken_cache():
    must(f"echo nonsense >{CACHE}/cache.json")
    resolver("KILL")


def typo():
    CONFIG.write_text(CONFIG.read_text().replace("allow =", "alow ="))


# What becomes of the fault, for the users who are known (y: they get in, n: they do not), the roster (for the import and the
# sweep) and the limit of a look-up in seconds.
SILENT = {"known": True, "roster": False, "limit": 2.5}
FAULTS = {
    "none": (lambda: None, {"known": True, "roster": True, "limit": 2.0}),
    "slow (0.3 s a call)": (lambda: control("delay=0.3"), {"known": True, "roster": True, "limit": 4.0}),
    "hang": (lambda: control("fail=hang"), SILENT),
    "reset": (lambda: control("fail=reset"), SILENT),
    "refused": (lambda: hosts(NOBODY), SILENT),
    "no DNS": (lambda: hosts(None), SILENT),
    "503": (lambda: control("fail=503"), SILENT),
    "throttled": (lambda: control("fail=throttle"), SILENT),
    "half answers": (lambda: control("fail=truncated"), SILENT),
    "credentials refused": (lambda: control("fail=credentials"), SILENT),
    "credentials expired": (lambda: control("fail=expired"), SILENT),
    "clock skew": (lambda: control("fail=skew"), SILENT),
    # The list of who may log in was read before: it gives names, and no rights.
    "denied": (lambda: control("fail=denied"), {"known": False, "roster": False, "limit": 2.0, "nss": True}),
    "list denied": (lambda: control("fail=denied&only=GetGroup"), {"known": True, "roster": False, "limit": 2.0}),
    "empty lists": (lambda: control("fail=empty"), {"known": False, "roster": False, "limit": 2.0, "nss": True, "sweeps": True}),
    "resolver killed": (lambda: resolver("KILL"), {"known": True, "roster": True, "limit": 2.0}),
    # Names come from the map.
    "resolver stopped": (lambda: resolver("STOP"), {"known": False, "nss": True, "roster": False, "limit": 11.0}),
    "socket squatted": (squat, {"known": False, "nss": True, "roster": False, "limit": 2.0}),
    "configuration broken": (typo, {"known": False, "roster": False, "limit": 2.0, "nss": True}),
    "disk full": (full_disk, {"known": True, "roster": True, "limit": 2.0}),
    "cache broken": (broken_cache, {"known": True, "roster": True, "limit": 2.0}),
}


def prepare():
    must("useradd -m -s /bin/bash local; echo 'local ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/local; install -d -m 700 -o local ~local/.ssh; "
         "ssh-keygen -q -t ed25519 -N '' -f /root/local; install -m 600 -o local /root/local.pub ~local/.ssh/authorized_keys")
    # Who is known logged in before, and carol is still there.
    must("until box-ssh alice true && box-ssh carol sudo -n true; do sleep 0.1; done")
    subprocess.Popen(["box-ssh", "carol", "sleep 5000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
    must("id -u carol >/root/carol; id -u alice >/root/alice")
    must("until pgrep -u carol -x sleep; do sleep 0.02; done")
    # Accounts as the importer makes them, for its own turn; until then they come from NSS.
    must("mkdir /root/nss /root/imported; cp /etc/passwd /etc/shadow /etc/group /root/nss; iam-importer --quiet; test $? -le 1; "
         "cp /etc/passwd /etc/shadow /etc/group /root/imported; cp /root/nss/* /etc")
    must(f"until grep -q carol {CACHE}/cache.json; do sleep 0.05; done")
    # A call that a busy machine cut off is a fault of its own, after which the last answer serves for a while.
    must("for user in alice bob carol; do until iamctl explain $user --json | grep -qE '\"source\": *\"iam\"'; do sleep 0.05; done; done")


def operations(fault):
    """(operation, script, whether it is to succeed, limit in seconds)."""
    known, limit, roster = fault["known"], fault["limit"], fault["roster"]
    # A login is a dozen look-ups; while IAM is silent the first of them waits, and while nobody answers at all, each does.
    login, nss = 5 * limit, fault.get("nss", known)
    yield "getpwnam local", "getent passwd local", True, 2.0
    yield "getpwnam known", "getent passwd carol", nss, limit
    yield "getpwnam unknown", "getent passwd nosuch", False, limit
    yield "keys known", "iam-authorized-keys carol | grep .", known, limit
    yield "keys refused", "iam-authorized-keys root | grep .", False, 2.0
    yield "account known", "pamtester sshd carol acct_mgmt", known, limit
    yield "account refused", "pamtester sshd bob acct_mgmt", False, limit
    yield "account local", "pamtester sshd local acct_mgmt", True, 2.0
    yield "session known", "box-ssh carol true", known, login
    yield "session refused", "box-ssh bob true", False, login
    yield "session local", "box-ssh -i /root/local local true", True, 5.0
    yield "sudo known", "setpriv --reuid $(cat /root/carol) --regid $(cat /root/carol) --clear-groups sudo -n id -u | grep -x 0", known, login
    yield "sudo refused", "setpriv --reuid $(cat /root/alice) --regid $(cat /root/alice) --clear-groups sudo -n id -u | grep -x 0", False, login
    yield "sudo local", "setpriv --reuid local --regid local --init-groups sudo -n id -u | grep -x 0", True, 2.0
    yield "sweep", "iamctl sweep; pgrep -u $(cat /root/carol) -x sleep -r S >/dev/null", not fault.get("sweeps"), 66.0
    # 2 is "nothing done"; what it must not do is looked at afterwards.
    yield "import", "cp /root/imported/* /etc; iam-importer; test $? -le 1", roster, 70.0
    yield "nothing lost", "for f in passwd shadow group; do cmp /etc/$f /root/imported/$f || exit 1; done", True, 2.0


def main():
    name = sys.argv[1]
    prepare()
    cause, fault = FAULTS[name]
    cause()
    for operation, script, good, limit in operations(fault):
        status, words, seconds = sh(script)
        passed = (status == 0) == good and seconds <= limit
        print(json.dumps({"operation": operation, "fault": name, "wanted": good, "status": status, "saw": words,
                          "seconds": seconds, "limit": limit, "passed": passed}), flush=True)


if __name__ == "__main__":
    main()
