"""The ports file of `serve`: where each port really is, for programs that start an engine on port 0 or follow its settings."""

import json
import logging
from pathlib import Path

from attrs import define, field

from ..config import ConfigError
from ..host.compose import Running

log = logging.getLogger(__name__)


@define(eq=False)
class PortsFile:
    """One ports file. `path`: where it is; it holds `{"worker": [host, port], "http": …, "stream": …}`."""

    path: Path
    _written: dict[str, tuple[str, int]] = field(factory=dict, init=False)

    def forget(self) -> None:
        """Take an old file away: from now on it is there only while everything listens. Raises `ConfigError`."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._refusal(error) from None

    def follow(self, running: Running) -> None:
        """Write the file, and again whenever a port has moved. Raises `ConfigError` if it cannot be written now."""
        self._write(running.ports())
        running.on_move.append(lambda: self._look(running))

    def _look(self, running: Running) -> None:
        ports = running.ports()
        for name, address in self._written.items():
            if name in running.modules:
                ports.setdefault(name, address)  # it is just being started again, on the same port
        if ports == self._written:
            return
        try:
            self._write(ports)
        except ConfigError as error:
            log.error("%s; it holds the ports as they were", error)

    def _write(self, ports: dict[str, tuple[str, int]]) -> None:
        """Write the file in one step: whoever sees it sees all of it."""
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            temporary.write_text(json.dumps(ports) + "\n")
            temporary.replace(self.path)
        except OSError as error:
            raise self._refusal(error) from None
        self._written = ports
        log.info("ports are written to %s", self.path)

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(f"the ports file {self.path} cannot be written: {error.strerror}")
