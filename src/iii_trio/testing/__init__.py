"""The testing kit: raw workers over memory streams, engines as processes, and a network that fails on request."""

from .faults import FaultProxy, Link, open_proxy
from .process import EngineFailed, EngineProcess, run_engine
from .raw import NoFrame, RawPort, RawWorker, dial, open_port

__all__ = [
    "EngineFailed",
    "EngineProcess",
    "FaultProxy",
    "Link",
    "NoFrame",
    "RawPort",
    "RawWorker",
    "dial",
    "open_port",
    "open_proxy",
    "run_engine",
]
