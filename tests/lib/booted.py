"""The first process beside a booted box: makes the machine, boots it with systemd, runs the command, ends.

Called by tests/box inside fresh namespaces, as inside.py is. The command runs beside the machine, so that it outlives a
reboot; box-enter runs something in the machine. IAM runs beside it too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import inside  # noqa: E402  (its folder is not on the path of an isolated Python)

NAME = "box"
CGROUP = "/sys/fs/cgroup"
NETNS = f"{inside.BASE}/netns/{NAME}"
# systemd-nspawn ends so when the machine reboots.
REBOOT = 133
# The machine's first process is the one that is number 1 in a namespace below this one.
LEADER = "leader=$(grep -sE '^NSpid:[[:space:]]+[0-9]+[[:space:]]+1$' /proc/[0-9]*/status | cut -d / -f 3)"
# The host's own services are not the machine's.
UNITS = ["ssh.service"]
OUR_UNITS = ["iam-resolver.socket", "iam-resolver.service"]


def make_cgroup():
    """systemd wants the unified hierarchy and a part of it for itself."""
    subprocess.run(["umount", "-R", CGROUP], check=False, stderr=subprocess.DEVNULL)
    inside.mount("cgroup2", CGROUP, "cgroup2")
    own = Path(tempfile.mkdtemp(prefix="pam_iam-box-", dir=CGROUP))
    (own / "payload").mkdir()
    return own


def remove_cgroup(own):
    """What no process is in any more; what a killed box leaves is empty and harmless."""
    (own / "cgroup.kill").write_text("1")
    for folder, _, _ in os.walk(own, topdown=False):
        for _ in range(200):
            try:
                os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.01)


def make_machine_id():
    """systemd-nspawn wants an id of the machine that it runs on, and a minimal one may have none."""
    path = Path("/etc/machine-id")
    if path.exists() and re.fullmatch(r"[0-9a-f]{32}\n?", path.read_text()):
        return
    own = Path(inside.BASE, "machine-id")
    own.write_text(f"{os.urandom(16).hex()}\n")
    path.touch()
    inside.mount(str(own), str(path), None, inside.MS_BIND)


def prepare(order, root):
    for wants in Path(root, "etc/systemd/system").glob("*.wants"):
        shutil.rmtree(wants)
    Path(root, ".dockerenv").unlink(missing_ok=True)
    Path(root, "etc/hostname").write_text(f"{NAME}\n")
    # A journal of its own, also over a reboot.
    Path(root, "etc/machine-id").write_text("")
    subprocess.run(["rm", "-rf", f"{root}/var/log/journal"], check=True)
    os.makedirs(f"{root}/var/log/journal")
    inside.run("ssh-keygen", "-A", "-f", root, stdout=subprocess.DEVNULL)
    units = UNITS
    if order["installed"]:
        inside.install(order, root)
        units = UNITS + OUR_UNITS
    inside.configure(order, root)
    inside.run("systemctl", f"--root={root}", "enable", "--quiet", *units, stderr=subprocess.DEVNULL)


def boot(root, cgroup, repository):
    """Starts the machine, and starts it again when it reboots."""
    os.makedirs(os.path.dirname(NETNS))
    Path(NETNS).touch()
    inside.mount("/proc/self/ns/net", NETNS, None, inside.MS_BIND)
    console = open(inside.LOGS / "console.log", "ab", buffering=0)

    def into_cgroup():
        (cgroup / "payload/cgroup.procs").write_text(str(os.getpid()))

    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--network-namespace-path={NETNS}",
               "--system-call-filter=bpf", "--console=pipe", "--boot", "-D", root, "-M", NAME, f"--bind={inside.BOX}",
               # The overlay's own, as a mount of its own: a boot empties /tmp, where the repository may lie.
               f"--bind={root}{repository}:{repository}"]

    def keep():
        # With --keep-unit a reboot is an exit status, and who started it starts it again.
        # Nor may its own /tmp cover it.
        environment = {**os.environ, "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}
        while (status := subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                                        preexec_fn=into_cgroup, check=False).returncode) == REBOOT:
            pass
        console.write(f"box: the machine ended with {status}\n".encode())

    threading.Thread(target=keep, daemon=True).start()


def write_enter(environment):
    """box-enter COMMAND [ARG...]: runs it in the machine, whichever boot that is at."""
    variables = " ".join(f"{name}='{value}'" for name, value in environment.items())
    enter = inside.BOX / "bin/box-enter"
    enter.write_text(f"""#!/bin/sh
{LEADER}
if [ -z "$leader" ]; then
    echo "box-enter: the machine is down" >&2
    exit 125
fi
exec nsenter -t "$leader" --mount --uts --ipc --pid --cgroup --root --wd env -i {variables} "$@"
""")
    enter.chmod(0o755)
    reboot = inside.BOX / "bin/box-reboot"
    # Who enters a machine that is going down may hang, and it with him.
    reboot.write_text(f"""#!/bin/sh
# box-reboot: has the machine boot again, and waits until it is up.
set -eu
box-enter true
{LEADER}
box-enter systemctl reboot
for _ in $(seq 600); do
    [ -e "/proc/$leader" ] || break
    sleep 0.1
done
for _ in $(seq 600); do
    case $(timeout -k 1 5 box-enter systemctl is-system-running 2>/dev/null) in
    running | degraded) exit 0 ;;
    esac
    sleep 0.1
done
echo "box-reboot: the machine does not come up again" >&2
exit 1
""")
    reboot.chmod(0o755)


def entered(*command):
    done = subprocess.run([inside.BOX / "bin/box-enter", *command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout.strip()


def is_up():
    """Whether the machine has booted, also if something in it failed."""
    return entered("systemctl", "is-system-running")[1] in ("running", "degraded")


def main():
    with open(int(sys.argv[1]), "rb") as file:
        order = json.load(file)
    inside.mount("proc", "/proc", "proc", inside.MS_NOSUID | inside.MS_NODEV | inside.MS_NOEXEC)
    root = inside.make_overlay(order["root"], [order["repository"]] if order["root"] != "/" else [])
    os.umask(0o022)
    inside.LOGS.mkdir(mode=0o755, parents=True)
    inside.make_network()
    make_machine_id()
    prepare(order, root)
    ready = inside.start_iam(order)
    environment = inside.command_environment(order, root)
    write_enter(environment)
    cgroup = make_cgroup()
    inside.wait_for_iam(ready)
    boot(root, cgroup, order["repository"])
    inside.wait_for("the machine", is_up)
    if order["installed"]:
        inside.wait_for("the resolver", lambda: re.search(r'"roster_age": \d', entered("iamctl", "--json", "status")[1]))
    status = inside.run_command(order, environment | {"BOX_BOOTED": "yes"})
    if order["keep_logs"] is not None:
        (inside.LOGS / "journal.log").write_text(entered("journalctl", "--no-pager")[1])
    inside.keep_logs(order)
    remove_cgroup(cgroup)
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
