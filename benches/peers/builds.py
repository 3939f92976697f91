#!/usr/bin/env python3
"""Compares two builds of Weir in one run: CPU time and user-space instructions per hit, list hit, 304 and miss.

Example: `benches/peers/builds.py --base OLD/weir --new target/release/weir --sim target/release/weir-sim --most 1.02`.
The builds take turns, so that other load on the machine affects both. With `--most`, exits with 1 if a median ratio of
CPU time is above it. Both builds must accept the configuration in config/.
"""

import argparse
import pathlib
import sys
import tempfile

from measure import closed, instructions, median
from servers import Simulator, Weir, answers, get, weir_config

SESSION = "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T"
LIST = "/v1/agents/agt_load_1/sessions?limit=100"
MANY = "/v1/agents/agt_load_1/sessions/ase_agt_load_1_{n}"
NO_CACHE = ("Cache-Control: no-cache",)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=pathlib.Path, required=True, help="the build to compare with")
    parser.add_argument("--new", type=pathlib.Path, required=True, help="the build to measure")
    parser.add_argument("--sim", type=pathlib.Path, required=True, help="weir-sim")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--most", type=float, help="the limit of the ratio of CPU time")
    return parser.parse_args()


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        sim = Simulator(options.sim)
        builds = {"base": options.base, "new": options.new}
        running = {name: Weir(path, sim, weir_config(directory / name), name=name) for name, path in builds.items()}
        for server in running.values():
            answers(server.address, SESSION)
            answers(server.address, LIST)
        tag = get(running["new"].address, SESSION)[1]["etag"]
        kinds = {
            "hit": (SESSION, (), 0),
            "hit, 304": (SESSION, (f"If-None-Match: {tag}",), 0),
            "hit, list of 100": (LIST, (), 0),
            "miss": (MANY, NO_CACHE, 900),
        }
        print("| | base, CPU µs | new, CPU µs | new ÷ base | base, instructions | new, instructions | new ÷ base |")
        print("|---|---|---|---|---|---|---|")
        worst = 0.0
        for kind, (path, headers, among) in kinds.items():
            runs = {name: [] for name in running}
            for turn in range(options.rounds + 1):
                order = list(running)[:: 1 if turn % 2 else -1]
                for name in order:
                    run = closed(running[name], path, options.seconds, headers=headers, among=among, directory=directory)
                    # The first turn warms both.
                    if turn:
                        runs[name].append(run["cpu"])
            ratio = median([new / base for new, base in zip(runs["new"], runs["base"])])
            worst = max(worst, ratio)
            counts = []
            if not among:
                for name, path_of in builds.items():
                    config = weir_config(directory / f"{name}-callgrind")
                    start = lambda prefix: Weir(path_of, sim, config, prefix=prefix)
                    counts.append(instructions(start, path, directory, headers))
            cells = [f"{median(runs['base']):.2f}", f"{median(runs['new']):.2f}", f"{ratio:.3f}"]
            cells += [f"{counts[0]:,.0f}", f"{counts[1]:,.0f}", f"{counts[1] / counts[0]:.3f}"] if counts else ["", "", ""]
            print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
        for server in running.values():
            server.end()
        sim.end()
    if options.most and worst > options.most:
        sys.exit(f"the highest ratio of CPU time is {worst:.3f}; the limit is {options.most}")


if __name__ == "__main__":
    main()
