"""The HTTP front end: routes, requests and responses, connections."""

from .server import HttpModule, HttpStatistics, check_settings

__all__ = ["HttpModule", "HttpStatistics", "check_settings"]
