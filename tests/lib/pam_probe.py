"""Calls our PAM module in ways that applications may, and prints what came of each.

    pam_probe.py SITUATION ARGUMENT...
"""

import ctypes
import os
import pwd
import resource
import signal
import socket
import struct
import sys
import tempfile
import threading

PAM = ctypes.CDLL("libpam.so.0")
SERVICE, USER, TTY, RHOST = 1, 2, 3, 4
NAMES = {0: "success", 6: "denied", 9: "unavailable", 10: "unknown user", 14: "session failed", 19: "conversation failed",
         26: "abort"}


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


@CALLBACK
def silent(*_):
    """An application that answers no question: PAM_CONV_ERR."""
    return 19


class Conversation(ctypes.Structure):
    _fields_ = [("function", CALLBACK), ("data", ctypes.c_void_p)]


class Handle:
    """A transaction of an application with the service `probe`, or another."""

    def __init__(self, user, service=b"probe"):
        self.handle, self.conversation = ctypes.c_void_p(), Conversation(silent, None)
        assert PAM.pam_start(service, user, ctypes.byref(self.conversation), ctypes.byref(self.handle)) == 0

    def set(self, item, value):
        assert PAM.pam_set_item(self.handle, item, value) == 0

    def put(self, variable):
        assert PAM.pam_putenv(self.handle, variable) == 0

    def account(self):
        return self.named(PAM.pam_acct_mgmt(self.handle, 0))

    def open(self):
        return self.named(PAM.pam_open_session(self.handle, 0))

    def close(self):
        return self.named(PAM.pam_close_session(self.handle, 0))

    def end(self):
        PAM.pam_end(self.handle, 0)

    @staticmethod
    def named(code):
        return NAMES.get(code, str(code))


def user(name, service="probe"):
    # Bytes that no name has come as \\x...
    name = name.encode().decode("unicode_escape").encode("latin-1")
    return Handle(name, service.encode()).account()


def nobody():
    return Handle(None).account()


def long_name():
    return Handle(b"a" * 300).account()


def changed(name, other):
    handle = Handle(name.encode())
    before = handle.account()
    handle.set(USER, other.encode())
    return before, handle.account()


def absurd(name):
    handle = Handle(name.encode())
    handle.set(RHOST, b"evil\nevent=login user=root result=allow \xff" * 500)
    handle.set(TTY, b"/dev/../../etc/shadow")
    # libpam's own audit may find fault with it, which is no business of ours.
    return "success" if handle.account() in ("success", "4") and handle.open() in ("success", "4") else "other"


def session(name, *lines):
    handle = Handle(name.encode())
    if lines:
        handle.put(b"SSH_AUTH_INFO_0=" + "\n".join(lines).encode() + b"\n")
    result = handle.open()
    handle.close()
    return result


def twice(name):
    handle = Handle(name.encode())
    results = [handle.account(), handle.account(), handle.open(), handle.open(), handle.close(), handle.close()]
    handle.end()
    return results


def threads(name):
    results = []

    def work():
        for _ in range(20):
            handle = Handle(name.encode())
            results.append(handle.account())
            handle.end()

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(set(results)), len(results)


def forked(name):
    """A handle from before the fork, used on both sides of it."""
    handle = Handle(name.encode())
    first = handle.account()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, handle.account().encode())
        os._exit(0)
    os.waitpid(child, 0)
    return first, os.read(reading, 100).decode(), handle.account()


def sigchld_ignored(name):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    result = Handle(name.encode()).account()
    return result, signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN


def sigchld_reaped(name):
    """A host whose handler takes every child that ends."""
    def reap(*_):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, reap)
    result = Handle(name.encode()).account()
    return result, signal.getsignal(signal.SIGCHLD) == reap


def sigpipe(name):
    """A resolver that hangs up at once."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.rename("/run/pam_iam/resolver.sock", "/run/pam_iam/gone")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/run/pam_iam/resolver.sock")
    listener.listen(100)
    ended = threading.Event()

    def hang_up():
        while not ended.is_set():
            client, _ = listener.accept()
            # What is left unread makes the end a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

    threading.Thread(target=hang_up, daemon=True).start()
    result = Handle(name.encode()).account()
    os.rename("/run/pam_iam/gone", "/run/pam_iam/resolver.sock")
    return result


def closed(name):
    """Without standard descriptors. None may be taken for them, and nothing may be written there."""
    handle = Handle(name.encode())
    kept = os.dup(1)
    for fd in (0, 1, 2):
        os.close(fd)
    result = handle.account()
    opened = [fd for fd in (0, 1, 2) if os.path.exists(f"/proc/self/fd/{fd}")]
    os.dup2(kept, 1)
    # syslog(3) keeps its socket, in the first place that is free.
    return result, [fd for fd in opened if not os.readlink(f"/proc/self/fd/{fd}").startswith(("socket:", "pipe:"))]


def no_descriptors(name):
    handle = Handle(name.encode())
    first = handle.account()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    second = handle.account()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return first, second, handle.account()


def many_descriptors(name):
    """More of them than select(2) can take."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
    held = [os.dup(0) for _ in range(4000)]
    return Handle(name.encode()).account(), pwd.getpwnam(name).pw_name, len(held)


def chroot(name):
    handle = Handle(name.encode())
    first = handle.account()
    os.chroot(tempfile.mkdtemp())
    os.chdir("/")
    return first, handle.account(), handle.open()


print(globals()[sys.argv[1]](*sys.argv[2:]))
