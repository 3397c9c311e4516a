"""The testing kit: raw workers over memory streams, engines as processes, a network that fails on request, and a sweep."""

from .faults import FaultProxy, Link, open_proxy
from .process import EngineFailed, EngineProcess, run_engine
from .raw import NoFrame, RawPort, RawWorker, dial, open_port
from .sweep import CancelAtStep, sweep, task_tree

__all__ = [
    "CancelAtStep",
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
    "sweep",
    "task_tree",
]
