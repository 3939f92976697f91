#!/usr/bin/env python3
"""Measures Weir and the proxies that people would use instead, in one run.

The measured server has core 0 and the load generator core 1. Servers take turns in rounds, so that other load on the
machine affects all of them. Each sends the same bytes from its cache, checks a key, counts a rate limit as well as it
can, and writes no access log (Weir is also measured with its own). `--quick` is for a trial.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import servers
from measure import Client, closed, instructions, median, open_loop
from servers import ROOT, Simulator, Weir, answers, get, weir_config

SESSION = "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T"
LIST = "/v1/agents/agt_load_1/sessions?limit=100"
MANY = "/v1/agents/agt_load_1/sessions/ase_agt_load_1_{n}"
FRESH = {"content-type": "application/json", "cache-control": "max-age=3600"}


def released():
    """Returns Weir as released (scripts/release), and builds it if a source has changed."""
    built = ROOT / "target/dist/weir"
    sources = [ROOT / name for name in ("Cargo.toml", "Cargo.lock", "build.rs", "scripts/release")]
    sources += [path for folder in ("src", "config", "sim") for path in (ROOT / folder).rglob("*") if path.is_file()]
    if not built.exists() or any(source.stat().st_mtime > built.stat().st_mtime for source in sources):
        print("building Weir as released, which takes some minutes", file=sys.stderr)
        subprocess.run([ROOT / "scripts/release"], cwd=ROOT, check=True)
    return built


def build():
    """Returns the paths of the programs; "plain" is Weir built by cargo without PGO, like our other programs."""
    # The benches bring `weir`, a program of their own crate.
    benches = ["cargo", "bench", "--no-run", "--bench", "bare", "--bench", "load"]
    simulator = ["cargo", "build", "--release", "--package", "weir-sim", "--bins"]
    made = {}
    for command in (benches, simulator):
        command += ["--locked", "--message-format=json"]
        output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
        built = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        made |= {message["target"]["name"]: message["executable"] for message in built if message.get("executable")}
    plain = {name: pathlib.Path(made[name]) for name in ("weir-sim", "bare", "load")}
    return {"weir": released(), "plain": pathlib.Path(made["weir"]), **plain}


class Bench:
    def __init__(self, binaries, directory, options):
        self.binaries, self.directory, self.options = binaries, directory, options
        self.sim = Simulator(binaries["weir-sim"])

    def weir(self, name="Weir", binary="weir", **config):
        made = weir_config(self.directory / name.replace(" ", "-"), **config)
        return Weir(self.binaries[binary], self.sim, made, name=name)

    def all(self):
        """Starts and warms every server. Returns each with its paths for the same session and the same list."""
        weir, logging = self.weir(), self.weir("Weir with access log", log="on")
        plain = self.weir("Weir without PGO", binary="plain")
        for server in (weir, logging, plain):
            answers(server.address, SESSION)
            answers(server.address, LIST)
        # The peers cache the bodies of Weir's responses.
        for path, source in (("/bench/one", SESSION), ("/bench/list", LIST)):
            body = get(weir.address, source)[2]
            (self.directory / path.replace("/", "-")).write_bytes(body)
            self.sim.answer(path, body.decode(), FRESH)
        peers = [start(self.directory, self.sim) for start in (servers.nginx, servers.varnish, servers.haproxy)]
        bare = servers.bare(self.binaries["bare"], self.directory / "-bench-one")
        for server in (*peers, bare):
            answers(server.address, "/bench/one")
        for server in peers:
            answers(server.address, "/bench/list")
        own = [(server, SESSION, LIST) for server in (weir, logging, plain)]
        return [*own, *((server, "/bench/one", "/bench/list") for server in (*peers, bare))]


def table(title, rows, columns):
    print(f"\n{title}\n")
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, cells in rows:
        print(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def hits(bench):
    """Prints requests per second, CPU time, latency and memory; also for 304 responses and lists."""
    options, all = bench.options, bench.all()
    weir = all[0][0]
    tag = get(weir.address, SESSION)[1]["etag"]
    kinds = {server.name: (server, path, ()) for server, path, _ in all}
    kinds["Weir, 304"] = (weir, SESSION, (f"If-None-Match: {tag}",))
    for server, _, path in (all[0], *all[2:6]):
        kinds[f"{server.name}, list of 100"] = (server, path, ())
    runs = {name: [] for name in kinds}
    for server, path, headers in kinds.values():
        closed(server, path, 1, headers=headers)
    for turn in range(options.rounds):
        names = list(kinds)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            server, path, headers = kinds[name]
            runs[name].append(closed(server, path, options.seconds, headers=headers))
    for name, (server, path, headers) in kinds.items():
        if "list" not in name:
            times = [open_loop(bench.binaries["load"], server, path, options.rate, 2, headers=headers) for _ in range(3)]
            runs[name][0] |= {"p50": median([t["p50"] for t in times]), "p99": median([t["p99"] for t in times])}
    rows = []
    for name, measured in runs.items():
        against = "Weir, list of 100" if "list" in name else "Weir"
        ratios = [mine["cpu"] / theirs["cpu"] for mine, theirs in zip(runs[against], measured)]
        cpu, rps = median([run["cpu"] for run in measured]), median([run["rps"] for run in measured])
        latency = [f"{measured[0][p]}" if p in measured[0] else "" for p in ("p50", "p99")]
        memory = f"{kinds[name][0].resident() / 2**20:.0f}"
        rows.append((name, [f"{rps:,.0f}", f"{cpu:.2f}", f"{median(ratios):.2f}", *latency, memory]))
    title = f"Hits: medians of {options.rounds} rounds of {options.seconds} s, 32 connections; latency at {options.rate} requests/s"
    table(title, rows, ["requests/s", "CPU µs/request", "Weir's CPU ÷ this", "p50 µs", "p99 µs", "resident MiB"])
    for server, *_ in all:
        server.end()


def user_instructions(bench):
    """Counts instructions with callgrind. They do not depend on other load on the machine."""
    config = weir_config(bench.directory / "callgrind")
    body = bench.directory / "-bench-one"
    if not body.exists():
        weir = bench.weir()
        body.write_bytes(get(weir.address, SESSION)[2])
        bench.sim.answer("/bench/one", body.read_text(), FRESH)
        weir.end()
    start = {
        "Weir": lambda prefix: Weir(bench.binaries["weir"], bench.sim, config, prefix=prefix),
        "Weir without PGO": lambda prefix: Weir(bench.binaries["plain"], bench.sim, config, prefix=prefix),
        "nginx": lambda prefix: servers.nginx(bench.directory, bench.sim, prefix=prefix),
        "HAProxy": lambda prefix: servers.haproxy(bench.directory, bench.sim, prefix=prefix),
        "bare Pingora": lambda prefix: servers.bare(bench.binaries["bare"], body, prefix=prefix),
    }
    rows = []
    for name, starts in start.items():
        path = SESSION if name.startswith("Weir") else "/bench/one"
        rows.append((name, [f"{instructions(starts, path, bench.directory):,.0f}"]))
    table("User-space instructions per hit, by callgrind", rows, ["instructions"])


def misses(bench):
    """Prints what a proxy adds to a request to the provider, one request after the other."""
    weir = bench.weir()
    config = bench.directory
    nginx = servers.nginx(config, bench.sim)
    body = get(weir.address, SESSION)[2]
    bench.sim.answer("/bench/one", body.decode(), FRESH)
    answers(nginx.address, "/bench/one")
    native = "/v1/sessions/sess_SIM00000003"
    ways = {
        "the simulator itself": (Client(bench.sim.address), native, ()),
        "through nginx proxy_pass": (Client(nginx.address), f"/uncached{native}", ()),
        "through Weir with no-cache": (Client(weir.address), native, ("Cache-Control: no-cache",)),
        "through Weir, forwarded": (Client(weir.address), f"/agenthuman{native}?x=1", ("Cache-Control: no-cache",)),
    }
    took = {name: [] for name in ways}
    for round in range(bench.options.requests + 50):
        for name, (client, path, headers) in ways.items():
            begun = time.perf_counter()
            key = servers.SIM_KEYS["agenthuman"] if name == "the simulator itself" else servers.KEY
            status, *_ = client.get(path, headers, key)
            if status != 200:
                raise SystemExit(f"{name}: {status}")
            if round >= 50:
                took[name].append((time.perf_counter() - begun) * 1e6)
    direct = median(took["the simulator itself"])
    nginxs = median(took["through nginx proxy_pass"]) - direct
    rows = []
    for name, times in took.items():
        added = median(times) - direct
        rows.append((name, [f"{median(times):.0f}", f"{added:.0f}", f"{added / nginxs:.2f}" if added else ""]))
    table("Misses: medians of one request after the other", rows, ["µs", "added µs", "÷ nginx's added"])
    weir.end()
    nginx.end()


def scale(bench):
    """Prints CPU time and memory for many entries and for many clients."""
    options, rows = bench.options, []
    many = options.entries
    sim = Simulator(bench.binaries["weir-sim"], sessions=many + 10)
    wide = lambda text: text.replace("max_bytes: 256MiB", "max_bytes: 8GiB")
    filled = []
    for entries in (1000, many):
        config = weir_config(bench.directory / f"entries-{entries}", edit=wide)
        weir = Weir(bench.binaries["weir"], sim, config, name=f"{entries:,} entries")
        before = weir.resident()
        fill(bench, weir, entries)
        weight = weir.metric("weir_cache_bytes")
        filled.append((weir, entries, (weir.resident() - before) / entries, weight / entries))
    runs = {entries: [] for _, entries, *_ in filled}
    for _ in range(options.rounds):
        for weir, entries, *_ in filled:
            runs[entries].append(closed(weir, MANY, options.seconds, among=entries, directory=bench.directory))
    for weir, entries, resident, weight in filled:
        ratio = median([mine["cpu"] / first["cpu"] for mine, first in zip(runs[entries], runs[1000])])
        cpu = median([run["cpu"] for run in runs[entries]])
        rows.append((weir.name, [f"{cpu:.2f}", f"{ratio:.2f}", f"{resident:.0f}", f"{weight:.0f}"]))
        weir.end()
    clients = [(n, bench.weir(f"{n:,} clients", clients=n)) for n in (10, 10_000)]
    runs = {n: [] for n, _ in clients}
    for _, weir in clients:
        answers(weir.address, SESSION)
    for _ in range(options.rounds):
        for n, weir in clients:
            runs[n].append(closed(weir, SESSION, options.seconds))
    for n, weir in clients:
        ratio = median([mine["cpu"] / first["cpu"] for mine, first in zip(runs[n], runs[10])])
        rows.append((weir.name, [f"{median([run['cpu'] for run in runs[n]]):.2f}", f"{ratio:.2f}", "", ""]))
        weir.end()
    table("Scale", rows, ["CPU µs/hit", "÷ first row", "resident bytes per entry", "of these weighed"])
    sim.end()


def fill(bench, weir, entries):
    """Requests this number of sessions, each once, as fast as possible."""
    load = [bench.binaries["load"], weir.address, MANY, str(entries), "1", "64", f"X-API-Key: {servers.KEY}"]
    output = subprocess.run(["taskset", "-c", "1", *map(str, load)], capture_output=True, text=True, check=True).stdout
    if output.split()[1] != "0":
        raise SystemExit(f"{output.split()[1]} of {entries} requests to fill the cache failed")


def start_and_reload(bench):
    """Prints the time until Weir is ready, the time of a large reload, and the longest wait of a hit during it."""
    rows = []
    shipped = weir_config(bench.directory / "start")
    times = []
    for _ in range(9):
        weir = Weir(bench.binaries["weir"], bench.sim, shipped)
        times.append(weir.ready_seconds * 1000)
        weir.end()
    rows.append(("from exec until ready, shipped configuration", [f"{median(times):.0f}", f"{max(times):.0f}"]))
    large = weir_config(bench.directory / "large", clients=10_000)
    weir = Weir(bench.binaries["weir"], bench.sim, large)
    answers(weir.address, SESSION)
    took, pauses, calm = [], [], []
    for turn in range(5):
        load = [bench.binaries["load"], weir.address, SESSION, "2000", "3", "8", f"X-API-Key: {servers.KEY}"]
        loading = subprocess.run(["taskset", "-c", "1", *map(str, load)], capture_output=True, text=True, check=True)
        calm.append(int(loading.stdout.split()[-1]) / 1000)
        file = large / "clients.yaml"
        file.write_text(file.read_text() + f"# {turn}\n  - {{ id: more-{turn}, keys: [], rate_limit: plenty }}\n")
        loading = subprocess.Popen(["taskset", "-c", "1", *map(str, load)], stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        begun = time.perf_counter()
        reloading = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", f"http://{weir.admin}/reload"], capture_output=True, text=True)
        took.append((time.perf_counter() - begun) * 1000)
        if reloading.stdout != "200":
            raise SystemExit(f"POST /reload: status {reloading.stdout}, not 200")
        pauses.append(int(loading.communicate()[0].split()[-1]) / 1000)
    rows.append(("reload with 10,000 clients", [f"{median(took):.0f}", f"{max(took):.0f}"]))
    rows.append(("longest wait of a hit during that reload, at 2,000 requests/s", [f"{median(pauses):.1f}", f"{max(pauses):.1f}"]))
    rows.append(("the same without a reload", [f"{median(calm):.1f}", f"{max(calm):.1f}"]))
    weir.end()
    table("Start and reload", rows, ["median ms", "worst ms"])


def waiters(bench):
    """Prints how long it takes until 1,000 requests that wait for one cold key have their responses."""
    import selectors
    import socket as sockets

    spread = []
    weir = bench.weir("waiters")
    host, port = weir.address.split(":")
    for turn in range(5):
        session = f"ase_agt_load_1_{turn + 101}"
        path = f"/v1/agents/agt_load_1/sessions/{session}"
        bench.sim.control("POST", "/_sim/faults", {"path": session, "times": 1, "latency_ms": 1500})
        waiting = [sockets.create_connection((host, int(port))) for _ in range(1000)]
        selector = selectors.DefaultSelector()
        for one in waiting:
            one.sendall(f"GET {path} HTTP/1.1\r\nHost: b\r\nX-API-Key: {servers.KEY}\r\n\r\n".encode())
            selector.register(one, selectors.EVENT_READ)
        first = None
        while selector.get_map():
            for key, _ in selector.select():
                got = key.fileobj.recv(65536)
                first = first or time.perf_counter()
                if not got.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(got[:300])
                selector.unregister(key.fileobj)
        spread.append((time.perf_counter() - first) * 1000)
        for one in waiting:
            one.close()
    table(
        "1,000 requests that wait for a cold key: from the first response to the last, read by one client",
        [("one core for Weir, one for the client", [f"{median(spread):.1f}", f"{max(spread):.1f}"])],
        ["median ms", "worst ms"],
    )
    weir.end()


PARTS = {
    "hits": hits,
    "instructions": user_instructions,
    "misses": misses,
    "scale": scale,
    "start": start_and_reload,
    "waiters": waiters,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure (default: everything)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="for each server in each round")
    parser.add_argument("--rate", type=int, default=10_000, help="requests per second for the latency")
    parser.add_argument("--requests", type=int, default=2000, help="misses through each server")
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries of the larger cache")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--binaries", type=pathlib.Path, help="a directory with weir, plain, weir-sim, bare and load, already built")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.requests, options.entries = 2, 1, 200, 50_000
    named = {name: options.binaries / name for name in ("weir", "plain", "weir-sim", "bare", "load")} if options.binaries else build()
    with tempfile.TemporaryDirectory(prefix="weir-peers-") as directory:
        # End the servers however this program ends.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            bench = Bench(named, pathlib.Path(directory), options)
            for part in options.parts or PARTS:
                PARTS[part](bench)
        finally:
            for server in list(servers.Process.running):
                server.end()


if __name__ == "__main__":
    main()
