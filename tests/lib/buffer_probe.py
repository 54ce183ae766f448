"""Calls getpwnam_r(3) with a buffer that is too small, and then with one that is not.

    buffer_probe.py USER
"""

import ctypes
import errno
import sys

LIBC = ctypes.CDLL(None)


class Passwd(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("uid", ctypes.c_uint32),
                ("gid", ctypes.c_uint32), ("gecos", ctypes.c_char_p), ("home", ctypes.c_char_p),
                ("shell", ctypes.c_char_p)]


def look_up(name, size):
    entry, buffer, found = Passwd(), ctypes.create_string_buffer(size), ctypes.c_void_p()
    code = LIBC.getpwnam_r(name, ctypes.byref(entry), buffer, ctypes.c_size_t(size), ctypes.byref(found))
    return entry.name.decode() if found.value else errno.errorcode.get(code, "not found")


name = sys.argv[1].encode()
print("too small:", look_up(name, 20))
print("large enough:", look_up(name, 1024))
