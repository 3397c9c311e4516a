"""HTTP → worker → HTTP round trips per second, beside stock hypercorn's "hello" in the same run, driven by wrk.

usage: python bench/http_bench.py [--seconds 3] [--repetitions 3] [--connections 1 8 32 128] [--routes 1 100 1000]
                                  [--node NODE_MODULES]

The worker is one of our SDK, and with `--node` one of the official Node SDK beside it. The verdict is our share of the
requests per second of a bare hypercorn that answers by itself; wrk is a package of Debian. Each sample also names the
CPU time per request of every process that took part, in µs: other load moves that less than the rest.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from harness import Sample, emit, free_port, interleave, pinned, python, ratio, server

LUA = """
wrk.method = "POST"
wrk.body = '{"name":"ada","list":[1,2,3,4],"text":"some"}'
wrk.headers["Content-Type"] = "application/json"
"""
HELLO = """
import hypercorn.trio, sys, trio
from hypercorn.config import Config
BODY = b'{"message":"hello"}'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
config = Config()
config.bind = ["127.0.0.1:" + sys.argv[1]]
config.keep_alive_max_requests = 2**63
trio.run(hypercorn.trio.serve, app, config)
"""
WORKER = """
import sys
from iii_trio import Worker
worker = Worker("bench")
async def hello(data: dict) -> dict:
    return {"status_code": 200, "body": {"message": "hello"}}
handler = worker.function("bench::hello")(hello)
for number in range(int(sys.argv[1])):
    worker.http("POST", f"bench/{number}/hello")(handler)
worker.serve()
"""
NODE_WORKER = """
import { registerWorker } from 'iii-sdk'
const iii = registerWorker(process.env.III_URL)
iii.registerFunction('bench::node', async () => ({ status_code: 200, body: { message: 'hello' } }))
iii.registerTrigger({
  type: 'http', function_id: 'bench::node', config: { api_path: 'bench/node/hello', http_method: 'POST' },
})
"""
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}


def cpu_us(pid: int) -> float:
    """CPU time that a process has used so far, in µs; its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000 / os.sysconf("SC_CLK_TCK")


def wrk(url: str, connections: int, seconds: int, script: Path, processes: Mapping[str, int]) -> Sample:
    """One run of wrk on the second core: requests/s, p50 and p99 in µs, and answers that were no success.

    `<name>_cpu_us` is what each of `processes` (pid by name) spent on a request.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    before = {name: cpu_us(pid) for name, pid in processes.items()}
    text = subprocess.run(pinned(1, command), capture_output=True, text=True, check=True).stdout
    spent = {name: cpu_us(pid) - before[name] for name, pid in processes.items()}

    def micros(percent: str) -> float:
        found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)\b", text)
        return float(found[1]) * _UNITS[found[2]] if found else 0.0

    rate, bad = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    served = re.search(r"(\d+) requests in", text)
    assert rate is not None, text
    assert served is not None, text
    return {
        "per_s": float(rate[1]),
        "p50_us": micros("50"),
        "p99_us": micros("99"),
        "errors": int(bad[1]) if bad else 0,
        **{f"{name}_cpu_us": round(spent[name] / int(served[1])) for name in processes},
    }


@contextmanager
def engine(directory: Path, routes: int, node_modules: str | None) -> Iterator[tuple[int, dict[str, int]]]:
    """An engine and its workers; gives its HTTP port once the last route answers, and the pids by name."""
    port, http, stream = free_port(), free_port(), free_port()
    ports = ["--port", str(port), "--http-port", str(http), "--stream-port", str(stream)]
    command = [python(), "-m", "iii_trio", "serve", "--defaults", *ports, "--data-dir", str(directory / "data")]
    with ExitStack() as stack:
        pids = {"engine": stack.enter_context(server(command, http, cwd=directory, stderr=subprocess.DEVNULL)).pid}
        environ = {"III_URL": f"ws://127.0.0.1:{port}", "PATH": "/usr/bin:/bin:/usr/local/bin"}
        workers = {"worker": [python(), "-c", WORKER, str(routes)]}
        last = [f"bench/{routes - 1}/hello"]
        if node_modules:
            (directory / "node_modules").symlink_to(Path(node_modules).absolute())
            (directory / "worker.mjs").write_text(NODE_WORKER)
            workers["node"] = ["node", str(directory / "worker.mjs")]
            last.append("bench/node/hello")
        for name, worker in workers.items():
            process = subprocess.Popen(pinned(1, worker), env=environ, cwd=directory, stderr=subprocess.DEVNULL)
            pids[name] = process.pid
            stack.callback(process.wait)
            stack.callback(process.terminate)
        for path in last:
            wait_route(f"http://127.0.0.1:{http}/{path}")
        yield http, pids


def wait_route(url: str) -> None:
    """Return once the route answers."""
    command = [
        "curl",
        "-sf",
        "--retry",
        "100",
        "--retry-delay",
        "1",
        "--retry-all-errors",
        "-o",
        "/dev/null",
        "-d",
        "{}",
        url,
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--routes", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--node", metavar="NODE_MODULES", help="node_modules with the official Node SDK")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    for routes in options.routes:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            directory, plain = Path(name), free_port()
            script = directory / "post.lua"
            script.write_text(LUA)
            bare = stack.enter_context(server([python(), "-c", HELLO, str(plain)], plain, stderr=subprocess.DEVNULL))
            http, pids = stack.enter_context(engine(directory, routes, options.node))
            processes = {"hypercorn": {"hypercorn": bare.pid}, "engine": {**pids}, "node": {**pids}}
            processes["engine"].pop("node", None)
            processes["node"].pop("worker")
            urls = {
                "hypercorn": f"http://127.0.0.1:{plain}/",
                "engine": f"http://127.0.0.1:{http}/bench/{routes - 1}/hello",
            }
            if options.node:
                urls["node"] = f"http://127.0.0.1:{http}/bench/node/hello"
            for connections in options.connections:
                subjects = {
                    name: partial(wrk, url, connections, options.seconds, script, processes[name])
                    for name, url in urls.items()
                }
                samples = interleave(subjects, options.repetitions)
                for name in urls.keys() - {"hypercorn"}:
                    emit(
                        verdict="requests/s",
                        routes=routes,
                        connections=connections,
                        **ratio(samples, name, "hypercorn", "per_s"),
                        p50_us=ratio(samples, name, "hypercorn", "p50_us"),
                        p99_us=ratio(samples, name, "hypercorn", "p99_us"),
                    )


if __name__ == "__main__":
    main()
