"""A WebSocket client that may break every rule: bytes out as given, frames in as they come. For bad_input.py only."""

import base64
import ctypes
import errno
import os
import socket
import struct

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode, payload, fin=True, masked=True, reserved=0):
    """One frame; every part may be wrong on purpose."""
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    n, mask = len(payload), 0x80 if masked else 0
    if n < 126:
        head += bytes([mask | n])
    elif n < 65536:
        head += bytes([mask | 126]) + struct.pack(">H", n)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", n)
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(b ^ key[i & 3] for i, b in enumerate(payload))


class Raw:
    """A TCP connection to the server."""

    def __init__(self, port, timeout_s=10.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.buffer = b""

    def send(self, data):
        self.socket.sendall(data)

    def request(self, path="/v1/ws", **changes):
        """Sends an upgrade request with headers changed or, by None, left out; returns (status, head, body)."""
        headers = {
            "Host": "localhost",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "tidegate.v1.json",
        }
        headers.update({name.replace("_", "-"): value for name, value in changes.items()})
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        self.send("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        return self.response()

    def response(self):
        while b"\r\n\r\n" not in self.buffer:
            chunk = self.socket.recv(65536)
            if not chunk:
                raise EOFError(f"closed before the end of a response: {self.buffer!r}")
            self.buffer += chunk
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        return int(head.split(b" ", 2)[1]), head.decode(), self.buffer

    def receive(self):
        """The next frame as (opcode, payload); None when the server has closed the connection."""
        while True:
            b = self.buffer
            if len(b) >= 2:
                n, at = b[1] & 0x7F, 2
                if n == 126 and len(b) >= 4:
                    n, at = struct.unpack(">H", b[2:4])[0], 4
                elif n == 127 and len(b) >= 10:
                    n, at = struct.unpack(">Q", b[2:10])[0], 10
                elif n >= 126:
                    n = 1 << 62
                if len(b) >= at + n:
                    self.buffer = b[at + n :]
                    return b[0] & 0x0F, b[at : at + n]
            try:
                chunk = self.socket.recv(65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            self.buffer += chunk

    def close_code(self):
        """Reads up to the close frame and returns its code; None when the connection ended without one."""
        while (got := self.receive()) is not None:
            if got[0] == CLOSE:
                return struct.unpack(">H", got[1][:2])[0] if len(got[1]) >= 2 else 1005
        return None

    def close(self):
        self.socket.close()


def forbid_io_uring():
    """For Popen's preexec_fn: io_uring_setup fails with EPERM from here on, as a container's seccomp profile makes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    # load syscall number; if it is 425 (io_uring_setup on every architecture) return EPERM, else allow
    program = struct.pack("HBBI", 0x20, 0, 0, 0)
    program += struct.pack("HBBI", 0x15, 0, 1, 425)
    program += struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | errno.EPERM)
    program += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
