"""The measurements of tests/bench that are about logins. Runs in a box."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from statistics import median

from bench_table import Table, calls, control, resolver, seconds, wait_until

TURNS, WARM_UP = 60, 5
TRACED = 5
SSHD = "/usr/sbin/sshd"
# What a host has that has never heard of us.
WITHOUT_US = {"/etc/nsswitch.conf": (r" iam$", ""), "/etc/pam.d/sshd": (r"^.*pam_iam.*\n", ""),
              "/etc/ssh/sshd_config.d/10-pam_iam.conf": (r"(?s).*", "")}
TICKS = os.sysconf("SC_CLK_TCK")


class Sshd:
    """An sshd on a port of its own, so that its processor time is told from that of others."""

    def __init__(self, port, ours=True, options=""):
        self.port = port
        script = ""
        for path, (pattern, replacement) in {} if ours else WITHOUT_US.items():
            plain = Path(f"/run/box/plain{path.replace('/', '-')}")
            plain.write_text(re.sub(pattern, replacement, Path(path).read_text(), flags=re.M))
            script += f"mount --bind {plain} {path} && "
        script += f"exec {SSHD} -D -p {port} -o ListenAddress=127.0.0.1 -o MaxStartups=1000 {options}"
        self.process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(f"sshd on port {port}", lambda: listens(port))

    def login(self, user, port=None, key="alice", command=("true",)):
        """The command of a login."""
        return ["ssh", "-F", "none", "-p", str(port or self.port), "-i", f"{os.environ['BOX_KEYS']}/{key}",
                "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
                "-o", "PreferredAuthentications=publickey", "-o", "UserKnownHostsFile=/run/box/known_hosts",
                "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=127.0.0.1",
                "-l", user, "127.0.0.1", *command]

    def cpu(self):
        """The seconds of processor time that the ended logins have taken, with all that they started."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / TICKS


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def resolver_cpu():
    """The seconds of processor time that the resolver has taken."""
    tasks = Path(f"/proc/{resolver()}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def public_key():
    """Alice's public key."""
    return subprocess.check_output(["ssh-keygen", "-y", "-f", f"{os.environ['BOX_KEYS']}/alice"])


def add_local(user="local"):
    """A local account that has alice's key."""
    subprocess.run(["useradd", "-m", "-s", "/bin/bash", user], check=True)
    public = public_key()
    folder = Path(f"/home/{user}/.ssh")
    folder.mkdir(mode=0o700)
    (folder / "authorized_keys").write_bytes(public)
    subprocess.run(["chown", "-R", f"{user}:", folder], check=True)


def traced(pid, options, command):
    """What strace(1) says of a process and its children while `command` runs."""
    output = Path("/run/bench.trace")
    with subprocess.Popen(["strace", "-f", "-o", output, *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as strace:
        for line in strace.stderr:
            if "attached" in line:
                break
        command()
        strace.send_signal(signal.SIGINT)
        strace.stderr.read()
    return output.read_text()


def system_calls(sshd, user):
    """The system calls of a login in sshd and all that it starts."""
    summary = traced(sshd.process.pid, ["-c"], lambda: [seconds(sshd.login(user)) for _ in range(TRACED)])
    return int(re.search(r"(\d+)(?:\s+\d+)? total$", summary, re.M)[1]) / TRACED


def connections(sshd, user):
    """The connections to the resolver that a login makes; the median, since one of a few revalidates."""
    def one():
        trace = traced(resolver(), ["-e", "trace=accept4"], lambda: seconds(sshd.login(user)))
        return len(re.findall(r"accept4\(.*= \d+$", trace, re.M))
    return median(one() for _ in range(TRACED))


def login():
    add_local()
    # The least that any source of keys but a file costs: a program that prints them.
    Path("/etc/ssh/plain-key").write_bytes(public_key())
    subprocess.run(["useradd", "-m", "-s", "/bin/bash", "plain"], check=True)
    by_cat = "-o 'AuthorizedKeysCommand=/bin/cat /etc/ssh/plain-key' -o AuthorizedKeysCommandUser=nobody"
    series = {"without": (Sshd(2201, ours=False), "local"), "local": (Sshd(2202), "local"), "iam": (Sshd(2203), "alice"),
              "cat": (Sshd(2204, ours=False, options=by_cat), "plain")}
    for _ in range(WARM_UP):
        for sshd, user in series.values():
            seconds(sshd.login(user))
    control("clear")
    cpu = {name: -sshd.cpu() for name, (sshd, _) in series.items()}
    ours = -resolver_cpu()
    times = [{name: seconds(sshd.login(user)) for name, (sshd, user) in series.items()} for _ in range(TURNS)]
    asked = len(calls())
    ours = (ours + resolver_cpu()) / TURNS * 1000
    for name, (sshd, _) in series.items():
        cpu[name] = (cpu[name] + sshd.cpu()) / TURNS * 1000

    def wall(name):
        return median(turn[name] for turn in times) * 1000

    table = Table(f"{TURNS} logins each, in turn, by the same key, ssh's `true`; medians, and means of processor time", "without us")
    table.add("wall time, local account", wall("local"), wall("without"), unit="ms")
    table.add("wall time, IAM user, warm", wall("iam"), wall("without"), unit="ms")
    table.add("ratio, IAM user to local account", median(turn["iam"] / turn["local"] for turn in times), unit="")
    table.add("sshd's processor time, local account", cpu["local"], cpu["without"], unit="ms")
    table.add("sshd's processor time, IAM user", cpu["iam"], cpu["without"], unit="ms")
    table.add("more than without us", cpu["iam"] - cpu["without"], bar=3, unit="ms")
    table.add("of which any key command takes (cat)", cpu["cat"] - cpu["without"], unit="ms")
    table.add("the resolver's processor time", ours, bar=0.5, unit="ms")
    table.add("connections to the resolver", connections(series["iam"][0], "alice"), bar=4, unit="")
    without = system_calls(*series["without"])
    table.add("system calls, local account", system_calls(*series["local"]), without, unit="")
    table.add("system calls, IAM user", system_calls(*series["iam"]), without, unit="")
    table.add("calls to IAM per login", asked / TURNS, unit="")
    table.show()


DELAYS, CLIENTS, DISTANT = (50, 100, 200), (0, 50), 5


class Far:
    """A port on which a client reaches sshd only after half of `round_trip` (in seconds), and the same on the way back."""

    def __init__(self, port, sshd, round_trip):
        self.port, self.sshd, self.one_way = port, sshd, round_trip / 2
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        wait_until(f"port {port}", lambda: listens(port))

    async def serve(self):
        async with await asyncio.start_server(self.relay, "127.0.0.1", self.port) as server:
            await server.serve_forever()

    async def relay(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.sshd.port)
        await asyncio.gather(self.pump(reader, far_writer), self.pump(far_reader, writer))

    async def pump(self, reader, writer):
        loop = asyncio.get_running_loop()
        while chunk := await reader.read(65536):
            loop.call_later(self.one_way, writer.write, chunk)
        loop.call_later(self.one_way, writer.close)


def timed(command):
    """How long a login takes that may be refused."""
    start = time.perf_counter()
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def distance():
    """Of its config, max_age is 3 s, so that each login after a pause of that length revalidates."""
    sshd = Sshd(2201)
    ports = {0: sshd.port}
    for client in CLIENTS[1:]:
        ports[client] = Far(2300 + client, sshd, client / 1000).port
    fresh = (f"user{number}" for number in range(1000))
    rows, asked = {}, {}

    def measure(what, client, delay, command, pause=0.0):
        times = []
        control("clear")
        # Clearing takes the delay away.
        control(f"delay={delay / 1000}")
        for _ in range(DISTANT):
            time.sleep(pause)
            times.append(timed(command()))
        asked[what, client, delay] = len(calls()) / DISTANT
        rows[what, client, delay] = median(times) * 1000

    for client, port in ports.items():
        for delay in DELAYS:
            alice = sshd.login("alice", port)

            def cold(port=port):
                user = next(fresh)
                return sshd.login(user, port, key=user)

            timed(alice)
            measure("warm", client, delay, lambda: alice)
            measure("revalidating", client, delay, lambda: alice, pause=3.2)
            measure("cold, listed", client, delay, cold)
            names = iter(range(1000))
            measure("unknown", client, delay, lambda: sshd.login(f"nobody{next(names)}", port))
    control("delay=0")
    bars = {("revalidating", 0, 200): 250, ("cold, listed", 0, 200): 450, ("revalidating", 50, 200): 120}
    table = Table(f"logins by the distance of IAM and of the client; medians of {DISTANT}; and what is more than a warm one", "calls to IAM")
    for what, client, delay in rows:
        warm = rows["warm", client, delay]
        value = rows[what, client, delay] - (0 if what == "warm" else warm)
        beyond = "" if what == "warm" else ", beyond warm"
        table.add(f"IAM {delay} ms, client {client} ms: {what}{beyond}", value, asked[what, client, delay],
                  bars.get((what, client, delay)), unit="ms")
    table.show()


AT_ONCE, STORMS = 100, 7


def storm():
    """As many users at once, each of whom has logged in before; local accounts and IAM users in turn."""
    sshd = Sshd(2201)
    users = [f"user{number}" for number in range(AT_ONCE)]
    for number in range(AT_ONCE):
        add_local(f"local{number}")
    for user in users:
        seconds(sshd.login(user, key=user))
        seconds(sshd.login(user.replace("user", "local")))

    def rate(logins):
        start = time.perf_counter()
        children = [subprocess.Popen(login, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                    for login in logins]
        for child in children:
            said = child.communicate()[1]
            if child.returncode != 0:
                raise SystemExit(f"a login failed: {said}")
        return len(children) / (time.perf_counter() - start)

    turns = [(rate([sshd.login(user.replace("user", "local")) for user in users]),
              rate([sshd.login(user, key=user) for user in users])) for _ in range(STORMS)]
    local, ours = median(a for a, _ in turns), median(b for _, b in turns)
    table = Table(f"{AT_ONCE} logins at once of as many users; medians of {STORMS} turns", "local")
    table.add("logins a second", ours, local, unit="/s")
    table.add("ratio", median(b / a for a, b in turns), bar=0.97, unit="", at_least=True)
    table.show()
