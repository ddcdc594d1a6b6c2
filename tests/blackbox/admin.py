"""The admin edge, as an operator uses it: the binary's own subcommands, and HTTP by hand on the port and on the socket."""

import asyncio
import http.client
import json
import socket

from tide import binary, environment, free_port


def flags():
    """(port, what to start a server with so that it has the edge there)"""
    port = free_port()
    return port, ["--set", f"admin_listen=127.0.0.1:{port}"]


def request(port, path, method="GET", **headers):
    """(status, content type, body) of one request to the port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


def by_socket(path, target):
    """The whole answer to one request to the socket in the data folder."""
    with socket.socket(socket.AF_UNIX) as there:
        there.settimeout(20)
        there.connect(path)
        there.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
        answer = b""
        while chunk := there.recv(65536):
            answer += chunk
    return answer.decode()


async def tidegate(*arguments):
    """(exit status, stdout, stderr) of a subcommand."""
    process = await asyncio.create_subprocess_exec(
        binary(), *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def why(server, event_id):
    status, out, err = await tidegate("why", "--data", server.data, "--json", event_id)
    assert status == 0, err
    return json.loads(out)


async def top(server, seconds):
    status, out, err = await tidegate("top", "--data", server.data, "--json", "--once", "--seconds", seconds)
    assert status == 0, err
    return json.loads(out)
