"""The testing kit: raw workers over memory streams, and engines as processes."""

from .process import EngineFailed, EngineProcess, run_engine
from .raw import NoFrame, RawPort, RawWorker, open_port

__all__ = ["EngineFailed", "EngineProcess", "NoFrame", "RawPort", "RawWorker", "open_port", "run_engine"]
