"""Queues: named queues and durable topics with retries, dead letters and order per group."""

from .definitions import Keeper, Kept
from .dispatch import QueueStatistics
from .module import QueueModule
from .names import Kind, QueueKey
from .queues import QueuesStatistics
from .verdicts import QueueCounts

__all__ = ["Keeper", "Kept", "Kind", "QueueCounts", "QueueKey", "QueueModule", "QueueStatistics", "QueuesStatistics"]
