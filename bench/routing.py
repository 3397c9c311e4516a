"""Routed calls per second: our engine beside a bare router, pinned alike, in one run.

usage: python bench/routing.py [--seconds 3] [--repetitions 5] [--in-flight 1 64]

`ceiling_router.py` does the least a Trio process can do to route a call; the verdict is our share of its calls per second.
"""

import argparse
from pathlib import Path

from harness import emit, free_port, interleave, python, ratio, run_json, server

HERE = Path(__file__).parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64])
    options = parser.parse_args()
    scripts = {"ceiling": str(HERE / "ceiling_router.py"), "engine": str(HERE / "engine_only.py")}
    for in_flight in options.in_flight:

        def subject(script: str, in_flight: int = in_flight) -> dict[str, object]:
            port = free_port()
            with server([python(), script, str(port)], port):
                return run_json([python(), str(HERE / "load.py"), str(port), str(in_flight), str(options.seconds)])

        measured = {name: (lambda script=script: subject(script)) for name, script in scripts.items()}
        samples = interleave(measured, options.repetitions)
        emit(verdict="calls/s", in_flight=in_flight, **ratio(samples, "engine", "ceiling", "per_s"))


if __name__ == "__main__":
    main()
