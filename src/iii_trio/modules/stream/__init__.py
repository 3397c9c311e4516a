"""Streams: data by stream, group and item, and everybody who follows it live (spec/state-stream.md §3, §6, §7)."""

from .module import StreamModule, StreamStatistics

__all__ = ["StreamModule", "StreamStatistics"]
