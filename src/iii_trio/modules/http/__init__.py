"""The HTTP front end: routes, requests and responses, connections."""

from .server import HttpModule, HttpStatistics

__all__ = ["HttpModule", "HttpStatistics"]
