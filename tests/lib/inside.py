"""The first process of a box: makes the machine, starts its services, runs the command, ends.

Called by tests/box inside fresh namespaces. When it ends, the kernel kills what is left and unmounts everything.
"""

import ctypes
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC = 1, 2, 4, 8, 4096, 16384
MNT_DETACH = 2
# File systems that an overlay does not need to cover: the box has its own.
PSEUDO = {"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "securityfs", "debugfs", "tracefs",
          "bpf", "pstore", "configfs", "fusectl", "hugetlbfs", "autofs", "binfmt_misc", "efivarfs", "nsfs", "rpc_pipefs"}
# Where the box is put together: its own /run is a fresh one in any case.
BASE = "/run"
BOX = Path("/run/box")
LOGS = BOX / "log"
SOCKET = "/run/pam_iam/resolver.sock"
ENDPOINT = "http://127.0.0.1:5000"
CONTROL = "http://127.0.0.1:5001/"
REGION = "us-east-1"
ADMIN = {"id": "AKIAADMINISTRATOR000", "secret": "administrator-secret-of-the-box"}
ROLE = {"id": "ASIAINSTANCEROLE0000", "secret": "instance-role-secret-of-the-box", "token": "instance-role-token"}
DEFAULT_CONFIG = """\
[access]
allow = ["ssh-users"]
sudo = ["ssh-admins"]
"""
# The pause before a service is started again, as its unit has it.
RESTART_SECONDS = 0.25
READY_SECONDS = 30.0


def mount(source, target, kind, flags=0, data=""):
    encoded = [text.encode() if text else None for text in (source, target, kind)]
    if LIBC.mount(*encoded, flags, data.encode() or None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind or 'bind'} on {target}")


def mounts():
    """The mounted directories that hold files: (mount point, type)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        point = fields[4].encode().decode("unicode_escape")
        if kind not in PSEUDO and not point.startswith(("/proc", "/sys", "/dev", "/run")) and os.path.isdir(point):
            yield point, kind


def make_overlay(lowest="/", also=()):
    """An overlay of the whole file system on memory; of another one than this machine's, with the folders `also` of this."""
    covered = [point for point, _ in mounts() if point != "/"] if lowest == "/" else also
    mount("box", BASE, "tmpfs", 0, "mode=0755")
    root = f"{BASE}/root"
    for at, lower in enumerate([lowest, *covered]):
        upper, work = f"{BASE}/upper{at}", f"{BASE}/work{at}"
        for path in (upper, work):
            os.mkdir(path)
        # The directory at the top has its owner and mode from there: a /tmp of its own is everybody's.
        found = os.stat(lower)
        os.chown(upper, found.st_uid, found.st_gid)
        os.chmod(upper, stat.S_IMODE(found.st_mode))
        os.makedirs(root, exist_ok=True)
        target = root if at == 0 else root + lower
        if lower in also:
            os.makedirs(target, exist_ok=True)
        if at > 0 and not os.path.isdir(target):
            continue
        try:
            mount("box", target, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
        except OSError:
            if at == 0:
                raise
            # Not every file system can lie under an overlay; such a one is there to be read.
            mount(lower, target, None, MS_BIND)
    return root


def make_root():
    """The overlay is the root, with its own /proc, /dev and /run."""
    root = make_overlay()
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("/sys", f"{root}/sys", None, MS_BIND | MS_REC)
    mount("run", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    make_devices(f"{root}/dev")
    os.makedirs(f"{root}/run/box/old")
    os.chdir(root)
    # glibc has no wrapper of pivot_root(2), only its number.
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    if LIBC.syscall(number, b".", b"run/box/old") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chroot(".")
    os.chdir("/")
    LIBC.umount2(b"/run/box/old", MNT_DETACH)


def make_devices(dev):
    """A /dev of the box's own: /dev/log must not be the machine's."""
    mount("dev", dev, "tmpfs", MS_NOSUID, "mode=0755")
    for name, major, minor in (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
                               ("tty", 5, 0)):
        os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)
    os.mkdir(f"{dev}/pts")
    mount("devpts", f"{dev}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    os.symlink("pts/ptmx", f"{dev}/ptmx")
    os.mkdir(f"{dev}/shm")
    mount("shm", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{dev}/{name}")


def run(*command, **kwargs):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **kwargs)


def insert(path, lines, before):
    """Puts `lines` before the first line that begins with one of `before`."""
    text = Path(path).read_text().splitlines()
    at = next((at for at, line in enumerate(text) if line.split("#")[0].strip().startswith(before)), len(text))
    Path(path).write_text("\n".join(text[:at] + lines + text[at:]) + "\n")


def make_network():
    """The box reaches itself, and the address of the instance metadata service."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")


def configure(order, root=""):
    """The configuration, and where the box's IAM is."""
    with open(f"{root}/etc/hosts", "a", encoding="ascii") as hosts:
        # By a name of its own, so that a test can take the name away.
        hosts.write("127.0.0.1 localhost box\n127.0.0.1 iam.box\n")
    os.makedirs(f"{root}/etc/pam_iam", exist_ok=True)
    Path(f"{root}/etc/pam_iam/config.toml").write_text(order["config"] or DEFAULT_CONFIG)
    Path(f"{root}/etc/pam_iam/environment").write_text(f"AWS_ENDPOINT_URL={ENDPOINT}\nAWS_REGION={REGION}\n")
    for name in ("config.toml", "environment"):
        os.chmod(f"{root}/etc/pam_iam/{name}", 0o644)


def install(order, root=""):
    """What docs/install-by-hand.md does."""
    run(f"{order['repository']}/packaging/install", root)
    run("systemd-sysusers", f"--root={root or '/'}", "pam_iam.conf", stderr=subprocess.DEVNULL)
    family = "debian" if "@include" in Path(f"{root}/etc/pam.d/sshd").read_text() else "redhat"

    def add(service, lines_of, phase, before):
        text = Path(f"{root}/usr/share/pam_iam/pam.d/{family}/{lines_of}").read_text()
        lines = [line for line in text.splitlines() if line.startswith(phase)]
        insert(f"{root}/etc/pam.d/{service}", lines, before)

    add("sshd", "sshd", "account", ("account", "@include common-account"))
    add("sshd", "sshd", "session", ("@include common-session", "session include"))
    for service in ("sudo", "sudo-i"):
        if os.path.exists(f"{root}/etc/pam.d/{service}"):
            add(service, "sudo", "account", ("account", "@include common-account"))
    for service in ("cron", "atd", "systemd-user"):
        stack, vendors = f"{root}/etc/pam.d/{service}", f"{root}/usr/lib/pam.d/{service}"
        if not os.path.exists(stack) and os.path.exists(vendors):
            shutil.copy(vendors, stack)
        if os.path.exists(stack):
            add(service, service, "account", ("account", "@include common-account"))
    shutil.copy(f"{root}/usr/share/pam_iam/sshd/10-pam_iam.conf", f"{root}/etc/ssh/sshd_config.d/10-pam_iam.conf")
    shutil.copy(f"{root}/usr/share/pam_iam/sudoers/pam_iam", f"{root}/etc/sudoers.d/pam_iam")
    os.chmod(f"{root}/etc/sudoers.d/pam_iam", 0o440)
    if os.path.exists(f"{root}/var/log/lastlog"):
        with open(f"{root}/etc/login.defs", "a", encoding="ascii") as definitions:
            definitions.write("LASTLOG_UID_MAX 60000\n")
    if order["accounts"] == "nss":
        nsswitch = Path(f"{root}/etc/nsswitch.conf").read_text().splitlines()
        nsswitch = [f"{line} iam" if line.startswith(("passwd:", "group:")) else line for line in nsswitch]
        Path(f"{root}/etc/nsswitch.conf").write_text("\n".join(nsswitch) + "\n")


class Service:
    """A process that is started again when it dies."""

    def __init__(self, command, log, environment, user=None, listen=None):
        self.command, self.environment, self.user, self.listen = command, environment, user, listen
        self.log = open(LOGS / log, "ab", buffering=0)
        self.process = None
        self.start()
        threading.Thread(target=self.keep, daemon=True).start()

    def start(self):
        command = self.command
        options = {}
        if self.listen:
            # As systemd passes a socket: descriptor 3, and the pid of who is to take it.
            command = ["/bin/sh", "-c", f'LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@" 3<&{self.listen.fileno()}',
                       "sh", *command]
            options["pass_fds"] = [self.listen.fileno()]
        if self.user:
            account = pwd.getpwnam(self.user)
            options.update(user=account.pw_uid, group=account.pw_gid, extra_groups=[])
        self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, cwd="/", **options)

    def keep(self):
        while True:
            self.process.wait()
            time.sleep(RESTART_SECONDS)
            self.start()


def keep_authpriv_log():
    """syslogd, as far as we need one: everything in one file, the priority resolved for authpriv."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    listener.bind("/dev/log")
    os.chmod("/dev/log", 0o666)
    authpriv, other = open(LOGS / "authpriv.log", "ab", buffering=0), open(LOGS / "syslog.log", "ab", buffering=0)

    def loop():
        while True:
            message = listener.recv(65536)
            priority, _, text = message.partition(b">")
            facility = int(priority.lstrip(b"<") or 0) >> 3
            # 4 is auth (sshd), 10 authpriv (PAM modules, sudo).
            (authpriv if facility in (4, 10) else other).write(text.rstrip(b"\0\n") + b"\n")

    threading.Thread(target=loop, daemon=True).start()


def start_iam(order):
    """Starts the IAM server and waits until it is loaded."""
    setup = {name: order[name] for name in ("fixtures", "public_keys", "filler_key")}
    setup.update(admin=ADMIN, role=ROLE)
    ready_in, ready_out = os.pipe()
    log = open(LOGS / "iam.log", "ab", buffering=0)
    environment = {"PATH": os.environ["PATH"], "HOME": "/root", "AWS_EC2_METADATA_DISABLED": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    server = subprocess.Popen(
        [f"{order['venv']}/bin/python", f"{order['repository']}/tests/lib/iam_server.py", str(ready_out)],
        stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[ready_out], env=environment,
        # AWS does not wait for this host's processors.
        preexec_fn=lambda: os.nice(-15))
    os.close(ready_out)
    server.stdin.write(json.dumps(setup).encode())
    server.stdin.close()
    return ready_in


def start_resolver():
    """Starts the resolver behind a socket that outlives it, as systemd would."""
    check = subprocess.run(["/usr/libexec/pam_iam/iam-resolver", "check-config", "/etc/pam_iam/config.toml"],
                           capture_output=True, text=True)
    if check.returncode != 0:
        sys.stderr.write(f"tests/box: the resolver answers nobody: {check.stderr}")
    os.makedirs("/run/pam_iam", mode=0o755, exist_ok=True)
    # As the unit does it before each start.
    os.makedirs("/run/pam_iam/map", mode=0o755, exist_ok=True)
    shutil.chown("/run/pam_iam/map", "iam-resolver", "iam-resolver")
    run("/usr/sbin/iamctl", "write-mapped-gids")
    os.makedirs("/var/cache/pam_iam", mode=0o700)
    shutil.chown("/var/cache/pam_iam", "iam-resolver", "iam-resolver")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(SOCKET)
    os.chmod(SOCKET, 0o666)
    listener.listen(1024)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    for line in Path("/etc/pam_iam/environment").read_text().splitlines():
        name, _, value = line.partition("=")
        environment[name] = value
    Service(["/usr/libexec/pam_iam/iam-resolver", "serve"], "resolver.log", environment, user="iam-resolver",
            listen=listener)
    if check.returncode == 0:
        wait_for("the resolver", roster_read)


def keep_sweeping(seconds):
    """iam-sweep.service, where nothing runs services."""
    def loop():
        while True:
            time.sleep(seconds)
            with open(LOGS / "sweep.log", "ab") as log:
                subprocess.run(["/usr/sbin/iamctl", "sweep"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)

    threading.Thread(target=loop, daemon=True).start()


def start_sshd():
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    run("ssh-keygen", "-A", stdout=subprocess.DEVNULL)
    (LOGS / "sshd.log").touch()
    run("/usr/sbin/sshd", "-E", str(LOGS / "sshd.log"), "-o", "ListenAddress=127.0.0.1", "-o", "Port=22",
        "-o", "LogLevel=VERBOSE", "-o", "MaxStartups=1000")


def wait_for(what, condition):
    end = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > end:
            show_logs()
            sys.exit(f"tests/box: {what} is not ready after {READY_SECONDS:.0f} s; see its log")
        time.sleep(0.005)


def show_logs():
    for log in sorted(LOGS.glob("*.log")):
        sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')}")


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def roster_read():
    """Whether the resolver has read the roster, so that a test counts its own calls only."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(READY_SECONDS)
        request = b'{"v":1,"ask":"status"}'
        try:
            client.connect(SOCKET)
            client.sendall(len(request).to_bytes(4, "big") + request)
            answer = client.makefile("rb").read()[4:]
            return json.loads(answer or "{}").get("report", {}).get("roster_age") is not None
        except (OSError, ValueError):
            return False


def command_environment(order, root=""):
    keys = BOX / "keys"
    keys.mkdir(mode=0o700)
    copies = {}
    for name, source in order["private_keys"].items():
        if source in copies:
            os.link(copies[source], keys / name)
        else:
            shutil.copy(source, keys / name)
            os.chmod(keys / name, 0o600)
            copies[source] = keys / name
    (BOX / "known_hosts").write_text("".join(
        f"127.0.0.1 {path.read_text()}" for path in sorted(Path(f"{root}/etc/ssh").glob("ssh_host_*_key.pub"))))
    (BOX / "bin").mkdir()
    shutil.copy(f"{order['repository']}/tests/lib/box-ssh", BOX / "bin/box-ssh")
    return {
        "PATH": f"{BOX}/bin:/usr/libexec/pam_iam:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root", "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", "TERM": order["term"],
        "BOX_KEYS": str(keys), "BOX_PYTHON": f"{order['venv']}/bin/python", "BOX_CTL": CONTROL, "BOX_LOG": str(LOGS),
        "AWS_ENDPOINT_URL": ENDPOINT, "AWS_ACCESS_KEY_ID": ADMIN["id"], "AWS_SECRET_ACCESS_KEY": ADMIN["secret"],
        "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
    }


def wait_for_iam(ready):
    if os.read(ready, 16) != b"ready\n":
        sys.exit(f"tests/box: the IAM server does not start:\n{(LOGS / 'iam.log').read_text()[-2000:]}")


def be_init():
    """Forks: the parent is the machine's first process, to which falls whatever loses its parent; the child goes on. The
    kernel waits for the children of one that ignores SIGCHLD, faster than any attack makes them."""
    tell, told = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(tell)
        return told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(told)
    status = os.read(tell, 1)
    os._exit(status[0] if status else 1)


def main():
    with open(int(sys.argv[1]), "rb") as file:
        order = json.load(file)
    init = be_init()
    make_root()
    os.umask(0o022)
    LOGS.mkdir(mode=0o755)
    socket.sethostname("box")
    make_network()
    keep_authpriv_log()
    install(order)
    configure(order)
    ready = start_iam(order)
    start_sshd()
    environment = command_environment(order)
    wait_for_iam(ready)
    if order["resolver"] == "daemon":
        start_resolver()
    if order["accounts"] == "importer":
        # 1: some users are refused, as IAM's root and daemon of the default fixtures are.
        with open(LOGS / "importer.log", "ab") as log:
            done = subprocess.run(["/usr/sbin/iam-importer"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode not in (0, 1):
            show_logs()
            sys.exit(f"tests/box: iam-importer ended with {done.returncode}; see its log")
    wait_for("sshd", lambda: listening(22))
    if order.get("sweep"):
        keep_sweeping(order["sweep"])
    status = run_command(order, environment)
    keep_logs(order)
    sys.stdout.flush()
    os.write(init, bytes([status]))
    os._exit(status)


def run_command(order, environment):
    """The command of the order; its exit status."""
    cwd = order["cwd"] if os.path.isdir(order["cwd"]) else "/"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def own_interrupt():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        command = subprocess.Popen(order["argv"], env=environment, cwd=cwd, preexec_fn=own_interrupt)
        status = command.wait()
    except OSError as error:
        sys.stderr.write(f"tests/box: {order['argv'][0]}: {error.strerror}\n")
        status = 127
    return status if status >= 0 else 128 - status


def keep_logs(order):
    """Copies the logs out of the box, if that was ordered."""
    if order["keep_logs"] is not None:
        for log in LOGS.glob("*.log"):
            kept = os.open(log.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=order["keep_logs"])
            with open(kept, "wb") as file:
                file.write(log.read_bytes())


if __name__ == "__main__":
    main()
