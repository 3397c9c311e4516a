"""State: key-value data by scope and key, and the triggers that tell of its changes (spec/state-stream.md §2, §4, §5)."""

from .module import StateModule, StateStatistics
from .triggers import read_config

__all__ = ["StateModule", "StateStatistics", "read_config"]
