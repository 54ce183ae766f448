"""The measurements of tests/bench. Runs in a box."""

import ctypes
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

# Python's isolated mode leaves out the script's own folder.
sys.path.insert(0, str(Path(__file__).parent))
import bench_logins
import bench_scale
from bench_table import Table, calls, control, seconds

LOOKUPS = 5000
LOADS = 40
RUNS = 100
BUSY = 60
IMPORTS = 9
KEY_COMMAND = "/usr/libexec/pam_iam/iam-authorized-keys"
RESOLVER = "/usr/libexec/pam_iam/iam-resolver"


def logins():
    """The commands of a login of a local account and of alice, by the same key."""
    key = f"{os.environ['BOX_KEYS']}/alice"
    bench_logins.add_local()
    local, iam = ["box-ssh", "-i", key, "local", "true"], ["box-ssh", "-i", key, "alice", "true"]
    for _ in range(bench_logins.WARM_UP):
        seconds(local), seconds(iam)
    return local, iam


# What two local users and a remote one do all the time, by names that IAM knows and does not: the attempts of one turn, and how.
LOOPS = {
    "su": (5, ["su", "mallory", "-c"], "for name in alice carol bob root ghost$n; do su $name -c true </dev/null; done"),
    "sudo -u": (4, ["su", "oscar", "-c"],
                "for name in alice carol bob ghost$n; do sudo -n -u $name true </dev/null; done"),
    "ssh without a key that is theirs": (
        4, ["bash", "-c"], "for name in alice carol bob ghost$n; do box-ssh -i /root/stranger $name true; done"),
}


def busy():
    local, iam = logins()
    for user in ("mallory", "oscar"):
        subprocess.run(["useradd", "-m", "-s", "/bin/bash", user], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/stranger"], check=True)
    control("clear")
    began = time.perf_counter()
    files = [Path(f"/tmp/turns.{at}") for at in range(len(LOOPS))]
    loops = [
        subprocess.Popen([*who, f"for n in $(seq 100000); do {what}; echo $n >{file}; done"], stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for file, (_, who, what) in zip(files, LOOPS.values())
    ]
    pairs = []
    while time.perf_counter() - began < BUSY:
        pairs.append((seconds(local), seconds(iam)))
    for loop in loops:
        os.killpg(loop.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-KILL", "-u", "mallory,oscar"], check=False)
    for file, (what, (attempts, _, _)) in zip(files, LOOPS.items()):
        print(f"{int(file.read_text()) * attempts:5} attempts: {what}")
    print(f"{len(calls())} calls to IAM in {time.perf_counter() - began:.0f} s; {len(pairs)} pairs of logins meanwhile")
    print(f"local account, authorized_keys   {median(a for a, _ in pairs) * 1000:7.1f} ms")
    print(f"IAM user                         {median(b for _, b in pairs) * 1000:7.1f} ms")
    print(f"ratio                            {median(b / a for a, b in pairs):7.3f}")


def lookups(name):
    """The median time of getpwnam_r(3), in microseconds."""
    libc = ctypes.CDLL(None)
    entry, buffer, found = ctypes.create_string_buffer(64), ctypes.create_string_buffer(4096), ctypes.c_void_p()
    size = ctypes.c_size_t(4096)
    call, encoded = libc.getpwnam_r, name.encode()
    times = []
    for at in range(LOOKUPS + 100):
        start = time.perf_counter_ns()
        call(encoded, entry, buffer, size, ctypes.byref(found))
        if at >= 100:
            times.append(time.perf_counter_ns() - start)
    return median(times) / 1000


def nss():
    def measured(name):
        # nsswitch.conf is read at the start of a process.
        command = [sys.executable, "-I", "-B", __file__, "lookups", name]
        return median(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5))

    names = {"known IAM user": "alice", "unknown name": "nobody-has-this-name", "local user": "daemon"}
    ours = Path("/etc/nsswitch.conf").read_text()
    results = {}
    for line, text in (("with", ours), ("without", re.sub(r" iam$", "", ours, flags=re.M))):
        Path("/etc/nsswitch.conf").write_text(text)
        for what, name in names.items():
            results[what, line] = measured(name)
    print(f"getpwnam_r(3), median of {LOOKUPS} calls, median of 5 processes")
    print(f"{'':18}{'with our line':>16}{'without it':>16}{'difference':>16}")
    for what in names:
        a, b = results[what, "with"], results[what, "without"]
        print(f"{what:18}{a:13.1f} us{b:13.1f} us{a - b:13.1f} us")


SSSD = """[sssd]
services = nss
domains = local

[domain/local]
id_provider = proxy
auth_provider = none
proxy_lib_name = files
"""


def start_sssd():
    """Starts Debian's sssd, which serves the local accounts, and waits until its memory cache has one of them."""
    for package in sorted((Path(__file__).parents[2] / "target/sssd-debs").glob("*.deb")):
        unpack = f"dpkg-deb --fsys-tarfile '{package}' | tar -x -C / --keep-directory-symlink"
        subprocess.run(unpack, shell=True, check=True)
    subprocess.run(["ldconfig"], check=True)
    Path("/etc/sssd").mkdir(exist_ok=True)
    Path("/etc/sssd/sssd.conf").write_text(SSSD)
    os.chmod("/etc/sssd/sssd.conf", 0o600)
    subprocess.run(["useradd", "-m", "local"], check=True)
    subprocess.Popen(["/usr/sbin/sssd", "-i"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while subprocess.run(["getent", "-s", "sss", "passwd", "local"], stdout=subprocess.DEVNULL).returncode != 0:
        if time.monotonic() > end:
            sys.exit("sssd does not answer")
        time.sleep(0.1)


def sssd():
    start_sssd()
    program = Path(__file__).parents[2] / "target/nss_bench"
    users = {"iam": "alice", "sss": "local"}

    def entry(service, what, key, count=LOOKUPS * 20, threads=1, status=1):
        """The microseconds of the first lookup of a process, and of the others; medians of 5 processes."""
        library = glob.glob(f"/usr/lib/*/libnss_{service}.so.2")[0]
        gid = subprocess.check_output(["id", "-g", users[service]], text=True).strip()
        runs = []
        for _ in range(5):
            command = [program, library, service, what, key, gid, str(count), str(threads)]
            words = list(map(float, subprocess.check_output(command, text=True).split()))
            if words[1 + threads] != status:
                sys.exit(f"{service} {what} {key}: status {words[1 + threads]:.0f}")
            runs.append((words[0] / 1000, sum(words[1:1 + threads]) / threads / 1000))
        return [median(column) for column in zip(*runs)]

    def both(what, key, **kwargs):
        return [entry(service, what, key(user), **kwargs) for service, user in users.items()]

    def uid(user):
        return subprocess.check_output(["id", "-u", user], text=True).strip()

    table = Table("entry points of the NSS modules, called directly; medians of 5 processes", "libnss_sss")
    known, known_sss = both("passwd", str)
    table.add("getpwnam, known", known[1], known_sss[1], min(1, 0.6 * known_sss[1]))
    unknown, unknown_sss = both("passwd", lambda _: "nobody-has-this-name", status=0)
    table.add("getpwnam, unknown, repeated", unknown[1], unknown_sss[1], 2)
    by_uid, by_uid_sss = both("uid", uid)
    table.add("getpwuid, known", by_uid[1], by_uid_sss[1], 6)
    groups, groups_sss = both("initgroups", str)
    table.add("initgroups, fresh", groups[1], groups_sss[1], 3)
    many, many_sss = both("passwd", str, count=LOOKUPS, threads=8)
    table.add("getpwnam, known, each of 8 threads", many[1], many_sss[1], None)
    table.add("getpwnam, the first of a process", known[0], known_sss[0], 15)
    table.show()


def load(path):
    """The microseconds of dlopen(3), in a process that has PAM's library, as sshd and sudo have."""
    ctypes.CDLL("libpam.so.0")
    start = time.perf_counter_ns()
    ctypes.CDLL(path)
    return (time.perf_counter_ns() - start) / 1000


def spawned(command):
    """How long a program takes, started without a copy of this process."""
    null = os.open(os.devnull, os.O_RDWR)
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, at) for at in range(3)])
    _, status = os.waitpid(child, 0)
    took = time.perf_counter() - start
    os.close(null)
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return took


def size():
    pam = next(iter(glob.glob("/usr/lib/*-linux-gnu/security/pam_iam.so") + ["/usr/lib64/security/pam_iam.so"]))
    nss_module = next(iter(glob.glob("/usr/lib/*-linux-gnu/libnss_iam.so.2") + ["/usr/lib64/libnss_iam.so.2"]))
    print(f"{'':16}{'size':>12}{'relocations':>14}{'dlopen':>12}")
    for path in (pam, nss_module):
        relocations = subprocess.run(["readelf", "-rW", path], check=True, capture_output=True, text=True).stdout
        count = sum(1 for line in relocations.splitlines() if re.match(r"[0-9a-f]{12,}", line))
        command = [sys.executable, "-I", "-B", __file__, "load", path]
        times = [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(LOADS)]
        name = os.path.basename(path)
        print(f"{name:16}{os.path.getsize(path) / 1024:8.0f} KiB{count:14}{median(times):9.0f} us")
    uid = subprocess.check_output(["id", "-u", "alice"], text=True).strip()
    # As sshd runs it.
    command = [KEY_COMMAND, "--uid", uid, "alice"]
    times = [spawned(command) for _ in range(RUNS)]
    nothing = [spawned(["/bin/true"]) for _ in range(RUNS)]
    # GNU time forks from a small process: a child's peak counts what its parent had when it was forked.
    peak = subprocess.run(["/usr/bin/time", "-f", "%M", *command], check=True, capture_output=True, text=True).stderr
    print(f"iam-authorized-keys: {median(times) * 1000:.2f} ms start to finish ({median(nothing) * 1000:.2f} for /bin/true), "
          f"{int(peak.split()[-1]) / 1024:.1f} MiB peak")
    print(f"iam-resolver: {os.path.getsize(RESOLVER) / 1024 / 1024:.1f} MiB")
    print(f"iam-resolver serve: {bench_scale.memory('VmHWM'):.1f} MiB peak")


def once():
    uid = subprocess.check_output(["id", "-u", "alice"], text=True).strip()
    shutil.copy("/etc/pam_iam/config.toml", "/etc/pam_iam/once.toml")
    with open("/etc/pam_iam/once.toml", "a", encoding="ascii") as config:
        config.write('[resolver]\nmode = "once"\n')
    command = [KEY_COMMAND, "--config", "/etc/pam_iam/once.toml", "--uid", uid, "alice"]
    environment = {"PATH": "/usr/bin:/bin"}
    times = [seconds(command, env=environment) for _ in range(RUNS // 4)]
    print(f"iam-authorized-keys by iam-resolver --once: {median(times) * 1000:.1f} ms start to finish")
    print("(3 metadata requests and 4 calls to the box's IAM)")


def imports():
    # As on a host without our NSS module.
    nsswitch = Path("/etc/nsswitch.conf").read_text()
    Path("/etc/nsswitch.conf").write_text(re.sub(r" iam$", "", nsswitch, flags=re.M))
    print(f"{'':14}{'whole':>10}{'the list':>10}{'IAM':>10}{'importer':>10}{'calls':>8}")
    rows = []
    for what in ["first"] + ["no change"] * IMPORTS:
        control("clear")
        start = time.perf_counter()
        said = subprocess.run(["/usr/sbin/iam-importer"], check=True, capture_output=True, text=True).stdout
        whole = (time.perf_counter() - start) * 1000
        own, listed = map(int, re.search(r"\((\d+) ms, and (\d+) ms for the list\)", said).groups())
        log = control("log")
        rows.append((whole, listed, log["seconds"] * 1000, own, len(calls())))
        if what == "first":
            print_import(what, rows.pop())
    print_import("no change", [median(column) for column in zip(*rows)])
    accounts = subprocess.check_output("getent passwd | grep -c ^user", shell=True, text=True).strip()
    print(f"{accounts} accounts; no change: median of {IMPORTS}; the list: by the resolver, IAM's time in it; the calls are 5")
    print("pages of ssh-users and one of ssh-admins")


def print_import(what, row):
    print(f"{what:14}" + "".join(f"{value:7.0f} ms" for value in row[:4]) + f"{row[4]:8.0f}")


def sdk():
    for what, host in (("an address", "127.0.0.1"), ("a host name", "localhost")):
        environment = {"AWS_ENDPOINT_URL": f"http://{host}:5000", "AWS_REGION": "us-east-1"}
        server = subprocess.Popen([RESOLVER, "serve", "--socket", f"/run/bench-{host}.sock"], env=environment)
        calls = f"{os.environ['BOX_CTL']}?log"
        # The roster is read at the start: two calls for the groups of the box's configuration.
        subprocess.run(["curl", "-sSf", f"{os.environ['BOX_CTL']}?clear"], check=True, capture_output=True)
        while subprocess.run(["curl", "-sSf", calls], check=True, capture_output=True).stdout.count(b"GetGroup") < 2:
            time.sleep(0.05)
        status = Path(f"/proc/{server.pid}/status").read_text()
        size, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmSize", "Threads"))
        print(f"IAM by {what:12} {threads} threads, {size / 1024:.0f} MiB of address space")
        server.kill()
        server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "lookups":
        print(lookups(sys.argv[2]))
    elif sys.argv[1] == "load":
        print(load(sys.argv[2]))
    else:
        {"login": bench_logins.login, "distance": bench_logins.distance, "storm": bench_logins.storm,
         "scale": bench_scale.scale, "busy": busy, "nss": nss, "size": size, "once": once, "import": imports, "sdk": sdk, "sssd": sssd}[sys.argv[1]]()
