"""The engine shows itself: what is registered, who is connected, how it is, and what changes."""

from .availability import Availability, AvailabilityStatistics
from .functions import IntrospectionModule, IntrospectionStatistics
from .tasks import task_tree

__all__ = ["Availability", "AvailabilityStatistics", "IntrospectionModule", "IntrospectionStatistics", "task_tree"]
