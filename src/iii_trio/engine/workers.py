"""Who is connected: the registry of workers, their names, their namespaces, and the way back after a lost connection.

One live connection holds a name in a namespace. Somebody who claims a held name has the holder asked whether it is
still there: an answer means the newcomer is refused, silence retires the holder (spec/protocol.md §4.1, §20.7).
"""

import logging
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from attrs import define, evolve, field, frozen

from ..protocol import Json, errors
from ..protocol.codec import canonical_id, read_worker
from ..protocol.errors import ProtocolError, WireError, bad_input
from ..protocol.limits import NAME_CHARS, PEER_MESSAGE_DEFAULT, PEER_MESSAGE_LARGE, PEER_MESSAGE_SMALL
from ..protocol.messages import RegisterWorker, RegistrationRejected
from .events import WorkerUpdated
from .invocations import Call, Outcome
from .local import LATER, Later
from .peer import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from .engine import Engine
    from .remote import RemotePeer

log = logging.getLogger(__name__)

REGISTER_WORKER: Final = "engine::workers::register"
_TEXT: Final = {"type": ["string", "null"]}
REGISTER_FORMAT: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "RegisterWorkerInput",
    "type": "object",
    "properties": {
        **dict.fromkeys(("runtime", "version", "name", "description", "os", "isolation", "namespace"), _TEXT),
        "pid": {"type": ["integer", "null"]},
        "telemetry": {"type": ["object", "null"]},
        "features": {"type": "array", "items": {"type": "string"}},
    },
    "required": [],
}
REGISTERED_FORMAT: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "RegisterWorkerResult",
    "type": "object",
    "properties": {"success": {"type": "boolean"}},
    "required": ["success"],
}
SUCCESS: Final = Outcome(Json(b'{"success":true}'))
NO_SUCCESS: Final = Outcome(Json(b'{"success":false}'))
_BIDI: Final = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_name(text: str | None) -> str | None:
    """A name or description as shown to people: no control or direction characters, at most 280 characters."""
    if text is None:
        return None
    kept = "".join(c for c in text if c not in _BIDI and unicodedata.category(c) != "Cc")
    return kept[:NAME_CHARS].strip() or None


def message_cap(info: RegisterWorker) -> int:
    """The largest message (bytes) a worker takes, by what it says of itself (spec/sdk.md §7)."""
    if "large-messages.v1" in info.features:
        return PEER_MESSAGE_LARGE
    if info.runtime == "python":
        major, _, rest = (info.version or "").partition(".")
        minor = rest.partition(".")[0]
        if major.isdigit() and minor.isdigit():
            return PEER_MESSAGE_SMALL if (int(major), int(minor)) < (0, 24) else PEER_MESSAGE_LARGE
    return PEER_MESSAGE_DEFAULT


@frozen
class WorkerStatistics:
    """`connected` workers, of which `named` hold a name."""

    connected: int
    named: int


@define(eq=False, repr=False)
class Workers:
    """The registry. Iterating gives the connected workers, oldest first."""

    core: "Engine"
    _peers: "dict[str, RemotePeer]" = field(factory=dict, init=False)
    _names: "dict[tuple[str, str], RemotePeer]" = field(factory=dict, init=False)

    def __iter__(self) -> "Iterator[RemotePeer]":
        return iter(tuple(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, worker_id: str) -> "RemotePeer | None":
        """The connected worker of that id."""
        return self._peers.get(worker_id)

    def add(self, peer: "RemotePeer") -> None:
        """A connection has been accepted."""
        self._peers[peer.id] = peer

    def release(self, peer: "RemotePeer") -> None:
        """Disconnect cleanup (spec/protocol.md §13.6)."""
        self._peers.pop(peer.id, None)
        if peer.lease is not None and self._names.get(peer.lease) is peer:
            del self._names[peer.lease]
        peer.lease = None

    def reattach(self, peer: "RemotePeer", previous_id: str, token: str | None) -> None:
        """Retire the previous connection of a worker that proves it is the same one; otherwise nothing happens."""
        worker_id = canonical_id(previous_id)
        old = self._peers.get(worker_id) if worker_id is not None else None
        if old is None or old is peer:
            return
        if token != old.reattach_token:
            log.warning("worker %s tried to take over %s without its token", peer.label, old.label)
            return
        log.info("worker %s is back as %s", old.label, peer.id)
        old.retire(1012, "reattached by a new connection")

    # -- engine::workers::register ------------------------------------------------------------------------------------

    def register(self, call: Call, data: Json) -> Outcome | Later:
        """The built-in `engine::workers::register` (spec/protocol.md §4.1). Result: `{"success": bool}`."""
        peer = self._peers.get(call.origin.id)
        if peer is None:
            raise WireError("only a worker connection can register itself", errors.FORBIDDEN)
        try:
            info = read_worker(data.raw)
        except ProtocolError as error:
            raise bad_input(REGISTER_WORKER, str(error)) from None
        if info.namespace is not None and not info.namespace.strip():
            shown = info.name or "<unnamed>"
            text = (
                f"namespace is empty: worker '{shown}' declared \"{info.namespace}\". "
                "Give it a name, or omit the field to register in 'default'."
            )
            raise WireError(text, errors.INVALID_NAMESPACE)
        declared = info.namespace or (peer.namespace if peer.namespace_fixed else DEFAULT_NAMESPACE)
        if peer.session is not None and not peer.session.permits(declared):
            refusal = peer.session.refusal(declared)
            peer.bar_namespace(refusal)
            raise refusal
        namespace = peer.namespace if peer.namespace_fixed else declared
        if info.namespace is not None and namespace != declared:
            log.warning("worker %s declared namespace %r too late; it stays in %r", peer.label, declared, namespace)
        name = clean_name(info.name)
        if name is None:
            self._admit(peer, info, namespace)
            return SUCCESS
        peer.stop_grace()
        peer.wanted = (namespace, name)
        self._claim(peer, info, peer.wanted, call.finish)
        return LATER

    def _claim(
        self, peer: "RemotePeer", info: RegisterWorker, key: tuple[str, str], finish: Callable[[Outcome], None]
    ) -> None:
        """Take the lease, or find out whether its holder lives. May be called again after a probe."""
        if peer.leaving or peer.wanted != key:  # it has left, or goes by another name by now
            finish(NO_SUCCESS)
            return
        holder = self._names.get(key)
        if holder is None or holder is peer or holder.leaving:
            if peer.lease is not None and peer.lease != key and self._names.get(peer.lease) is peer:
                del self._names[peer.lease]
            self._names[key] = peer
            peer.lease = key
            peer.name = key[1]
            self._admit(peer, info, key[0])
            finish(SUCCESS)
            return

        def answered(alive: bool) -> None:
            if peer.leaving or peer.wanted != key or self._names.get(key) is not holder:
                self._claim(peer, info, key, finish)
            elif alive:
                log.warning("worker name %r in %r is taken by %s; %s is refused", key[1], key[0], holder.id, peer.id)
                peer.send(
                    RegistrationRejected(
                        code=errors.WORKER_NAMESPACE_CONFLICT,
                        namespace=key[0],
                        worker_name=key[1],
                        owner_worker_id=holder.id,
                    )
                )
                finish(NO_SUCCESS)
                peer.retire(1008, "worker name is taken")
            else:
                holder.retire(1012, "silent while its name was claimed")
                self._claim(peer, info, key, finish)

        holder.probe(answered)

    def _admit(self, peer: "RemotePeer", info: RegisterWorker, namespace: str) -> None:
        """Store what a worker says of itself; what it leaves out the next time stays (spec/protocol.md §4.1.6)."""
        known = peer.info
        if known is not None:
            kept = ("name", "description", "os", "pid", "isolation", "namespace")
            info = evolve(info, **{key: getattr(known, key) for key in kept if getattr(info, key) is None})
            info = info if info.features else evolve(info, features=known.features)
        peer.info = info
        peer.description = clean_name(info.description)
        peer.features = frozenset(info.features)
        peer.cap = message_cap(info)
        peer.fix_namespace(namespace)
        self.core.events.emit(WorkerUpdated(peer.id))

    def statistics(self) -> WorkerStatistics:
        """A frozen picture of the registry."""
        return WorkerStatistics(connected=len(self._peers), named=len(self._names))
