"""The configuration of the engine and of its workers: schema-checked entries that tell of their changes."""

from .entries import Changed, ConfigurationEntry, Registration, value_read
from .files import EntryFiles
from .functions import ConfigurationModule, ConfigurationStatistics
from .registry import Registry

__all__ = [
    "Changed",
    "ConfigurationEntry",
    "ConfigurationModule",
    "ConfigurationStatistics",
    "EntryFiles",
    "Registration",
    "Registry",
    "value_read",
]
