"""Starts Weir, its peers and the simulator, each on one core; reads their CPU time and memory; ends them."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KEY = "bench-key"
SIM_KEYS = {"vectara": "zut_sim", "palantir": "sim-token", "agenthuman": "ah_test_sim"}


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(address, path, headers=(), key=KEY):
    """Sends a GET on a new connection. Returns status, headers and body."""
    request = urllib.request.Request(f"http://{address}{path}", headers={"X-API-Key": key, **dict(headers)})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read()


class Process:
    """A server process, pinned to a core."""

    running = []

    def __init__(self, name, command, core=0, env=None, prefix=()):
        self.name = name
        pinned = ["taskset", "-c", str(core), *prefix, *map(str, command)]
        self.child = subprocess.Popen(
            pinned, env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        Process.running.append(self)

    def line(self, stream, pattern, patience=60):
        """Waits for a line that matches the pattern. Returns the pattern's group."""
        until = time.time() + patience
        while time.time() < until:
            line = stream.readline()
            if not line and self.child.poll() is not None:
                raise SystemExit(f"{self.name} ended: {self.child.stderr.read()[-2000:]}")
            found = re.search(pattern, line)
            if found:
                return found.group(1)
        raise SystemExit(f"{self.name} printed no line that matches {pattern} within {patience} s")

    def pids(self):
        """Returns the ids of this process and its descendants."""
        children = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found, left = [], [self.child.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            left += children.get(pid, [])
        return found

    def cpu_seconds(self):
        """Returns the CPU time of all threads, user and system."""
        total = 0
        for pid in self.pids():
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(task.read_text().split()[0])
        return total / 1e9

    def resident(self):
        """Returns the resident bytes, shared pages by their share (PSS)."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M).group(1)) * 1024
        return total

    def end(self):
        if self in Process.running:
            Process.running.remove(self)
        pids = self.pids()
        self.child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(10)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, 9)
        self.child.wait()


def answers(address, path, patience=20):
    """Waits until a server responds to a path with 200."""
    until = time.time() + patience
    while time.time() < until:
        with contextlib.suppress(OSError):
            if get(address, path)[0] == 200:
                return
        time.sleep(0.02)
    raise SystemExit(f"{address}{path} does not respond with 200: {get(address, path)[:1]}")


class Simulator(Process):
    def __init__(self, binary, core=1, sessions=1000):
        super().__init__(
            "weir-sim", [binary, "--listen", "127.0.0.1:0", "--exit-with-stdin", "--sessions", sessions], core
        )
        self.address = self.line(self.child.stdout, r"listening http=(\S+)")

    def control(self, method, path, body):
        request = urllib.request.Request(
            f"http://{self.address}{path}", method=method, data=json.dumps(body).encode() if body else None
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def answer(self, path, body, headers):
        """Makes the simulator respond to a path with this body, until another call changes it."""
        fault = {"kind": "answer", "status": 200, "headers": headers, "body": body}
        self.control("POST", "/_sim/faults", {"path": path, "times": None, "fault": fault})


def weir_config(directory, log="off", clients=1, policies="[plenty]", edit=lambda text: text):
    """Writes the shipped configuration with one worker, a policy that no load reaches, and this number of clients."""
    import hashlib

    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(ROOT / "config", directory)
    weir = (directory / "weir.yaml").read_text()
    weir = re.sub(r"^workers: 0", "workers: 1", weir, flags=re.M)
    weir = re.sub(r"^access_log: on", f"access_log: {log}", weir, flags=re.M)
    weir += "  plenty:\n    requests: 1000000000\n    per: 1m\n"
    (directory / "weir.yaml").write_text(edit(weir))
    rows = ["clients:"]
    for n in range(clients):
        digest = hashlib.sha256((KEY if n == 0 else f"key-{n}").encode()).hexdigest()
        rows.append(f"  - {{ id: client-{n}, keys: [ {{ sha256: {digest} }} ], rate_limit: {policies} }}")
    (directory / "clients.yaml").write_text("\n".join(rows) + "\n")
    for provider in (directory / "providers").glob("*.yaml"):
        text = re.sub(r"^    requests: \d+$", "    requests: 100000000", provider.read_text(), flags=re.M)
        text = re.sub(r"^    burst: \d+$", "    burst: 100000000", text, flags=re.M)
        # Entries stay fresh during the whole run.
        text = re.sub(r"^  (default|max|list): \d+\w+", r"  \1: 24h", text, flags=re.M)
        provider.write_text(text)
    return directory


class Weir(Process):
    def __init__(self, binary, sim, config, core=0, prefix=(), name="Weir", patience=60):
        env = {f"{provider.upper()}_BASE_URL": f"http://{sim.address}" for provider in SIM_KEYS}
        env |= {"VECTARA_API_KEY": "zut_sim", "PALANTIR_TOKEN": "sim-token", "AGENTHUMAN_API_KEY": "ah_test_sim"}
        env |= {"WEIR_LISTEN": "127.0.0.1:0", "WEIR_ADMIN": "127.0.0.1:0"}
        self.started = time.perf_counter()
        super().__init__(name, [binary, "--config", config, "run"], core, env, prefix)
        said = self.line(self.child.stderr, r"listening (http=.*)", patience)
        self.ready_seconds = time.perf_counter() - self.started
        self.address, self.admin = re.search(r"http=(\S+) admin=(\S+)", said).groups()
        # A reader for the log, as in production.
        for stream in (self.child.stdout, self.child.stderr):
            subprocess.Popen(["cat"], stdin=stream, stdout=subprocess.DEVNULL)

    def metric(self, name):
        text = urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=20).read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def filled(template, directory, address, sim, path="/bench"):
    text = (HERE / template).read_text()
    host, port = sim.address.split(":")
    for name, value in {
        "DIR": directory, "ADDRESS": address, "KEY": KEY, "SIM": sim.address, "SIMHOST": host, "SIMPORT": port,
        "SIMKEY": SIM_KEYS["agenthuman"],
    }.items():
        text = text.replace(f"@{name}@", str(value))
    file = directory / template
    file.write_text(text)
    return file


def nginx(directory, sim, core=0, prefix=()):
    address = f"127.0.0.1:{free_port()}"
    file = filled("nginx.conf", directory, address, sim)
    process = Process("nginx", ["nginx", "-c", file, "-e", directory / "nginx.err"], core, prefix=prefix)
    process.address = address
    return process


def varnish(directory, sim, core=0, prefix=()):
    address = f"127.0.0.1:{free_port()}"
    file = filled("varnish.vcl", directory, address, sim)
    command = ["varnishd", "-j", "none", "-F", "-f", file, "-a", address, "-n", directory / "varnish", "-s", "malloc,64m", "-T", "none"]
    process = Process("Varnish", [*command, "-p", "thread_pools=1"], core, prefix=prefix)
    process.address = address
    return process


def haproxy(directory, sim, core=0, prefix=()):
    address = f"127.0.0.1:{free_port()}"
    file = filled("haproxy.cfg", directory, address, sim)
    process = Process("HAProxy", ["haproxy", "-db", "-f", file], core, prefix=prefix)
    process.address = address
    return process


def bare(binary, body, core=0, prefix=()):
    address = f"127.0.0.1:{free_port()}"
    process = Process("bare Pingora", [binary, address, body], core, prefix=prefix)
    process.address = address
    return process
