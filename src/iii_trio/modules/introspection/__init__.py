"""The engine shows itself: what is registered, who is connected, how it is, and what changes."""

from .availability import Availability, AvailabilityStatistics
from .functions import IntrospectionModule, IntrospectionStatistics
from .metrics import TelemetryStatistics
from .tasks import task_tree

__all__ = [
    "Availability",
    "AvailabilityStatistics",
    "IntrospectionModule",
    "IntrospectionStatistics",
    "TelemetryStatistics",
    "task_tree",
]
