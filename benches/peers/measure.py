"""Loads a server and measures it."""

import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import time

from servers import KEY

GENERATOR_CORE = "1"


def closed(server, path, seconds, connections=32, headers=(), among=0, directory=None):
    """Runs wrk's closed loop. Returns requests per second and CPU microseconds per request. `{n}` in a path is a random number up to `among`."""
    script = []
    if among:
        file = directory / "any.lua"
        text = f'math.randomseed(7)\nfunction request() return wrk.format("GET", (string.gsub("{path}", "{{n}}", math.random(1, {among})))) end\n'
        file.write_text(text)
        script = ["-s", str(file)]
    extra = [part for header in (f"X-API-Key: {KEY}", *headers) for part in ("-H", header)]
    command = ["taskset", "-c", GENERATOR_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *extra]
    before = server.cpu_seconds()
    output = subprocess.run([*command, *script, f"http://{server.address}{path}"], capture_output=True, text=True, check=True).stdout
    used = server.cpu_seconds() - before
    requests = int(re.search(r"(\d+) requests in", output).group(1))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", output)
    if failed:
        raise SystemExit(f"{server.name}: {failed.group(0)}")
    return {"rps": float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1)), "cpu": used / requests * 1e6}


def open_loop(load, server, path, rate, seconds, connections=32, headers=()):
    """Sends requests at fixed times. Returns p50 and p99 in microseconds, from the time at which each request was due."""
    command = ["taskset", "-c", GENERATOR_CORE, load, server.address, path, str(rate), str(seconds), str(connections)]
    command += [f"X-API-Key: {KEY}", *headers]
    fields = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    requests, errors, p50, _, p99, *_ = map(int, fields)
    if errors:
        raise SystemExit(f"{server.name}: {errors} of {requests} requests at {rate} a second failed")
    return {"p50": p50, "p99": p99}


class Client:
    """One keep-alive connection for one request after the other."""

    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path, headers=(), key=KEY):
        lines = "".join(f"{header}\r\n" for header in (f"X-API-Key: {key}", *headers))
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{lines}\r\n".encode())
        got = b""
        while True:
            part = self.socket.recv(1 << 20)
            if not part:
                raise SystemExit("the connection was closed")
            got += part
            end = got.find(b"\r\n\r\n")
            if end >= 0:
                head = got[:end].lower()
                status = int(head[9:12])
                length = re.search(rb"content-length: (\d+)", head)
                whole = end + 4 + (0 if status == 304 or not length else int(length.group(1)))
                if len(got) >= whole:
                    return status, head, got[end + 4 :]


CALLGRIND = ["valgrind", "--tool=callgrind", "--quiet"]


def instructions(start, path, directory, headers=(), few=500, many=2500):
    """Returns user-space instructions per request: the difference between a long and a short run, so that the start does not count."""
    totals = []
    for requests in (few, many):
        for old in directory.glob("callgrind.out*"):
            old.unlink()
        server = start([*CALLGRIND, "--trace-children=yes", f"--callgrind-out-file={directory}/callgrind.out.%p"])
        until = time.time() + 120
        client = None
        while client is None and time.time() < until:
            try:
                client = Client(server.address)
            except OSError:
                time.sleep(0.1)
        for _ in range(requests):
            status, *_ = client.get(path, headers)
            if status not in (200, 304):
                raise SystemExit(f"{server.name}: {status} under callgrind")
        client.socket.close()
        # SIGINT ends servers fast that would wait for their clients.
        for pid in server.pids():
            os.kill(pid, signal.SIGINT)
        server.child.wait(60)
        server.end()
        totals.append(sum(total(file) for file in directory.glob("callgrind.out*")))
    return (totals[1] - totals[0]) / (many - few)


def total(file):
    found = re.search(r"^(?:totals|summary): (\d+)", pathlib.Path(file).read_text(errors="replace"), re.M)
    return int(found.group(1)) if found else 0


def median(values):
    return statistics.median(values)
