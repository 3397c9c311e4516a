"""Queues: named queues and durable topics with retries, dead letters and order per group."""

from .dispatch import QueueStatistics
from .machine import QueueCounts
from .module import QueueModule
from .names import Kind, QueueKey
from .queues import QueuesStatistics

__all__ = ["Kind", "QueueCounts", "QueueKey", "QueueModule", "QueueStatistics", "QueuesStatistics"]
