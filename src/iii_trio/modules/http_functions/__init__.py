"""Functions that workers register as HTTP endpoints, and that the engine calls by requests of its own."""

from .module import HttpFunctionsModule
from .runner import RunnerStatistics

__all__ = ["HttpFunctionsModule", "RunnerStatistics"]
