"""Bindings and the providers of trigger types: one table, states as data (spec/protocol.md §9).

A binding is LIVE on a provider, PARKED (nobody provides its type, or its provider left), or REFUSED (its provider said
no; the next registration of the type tries again). Providers keep derived indexes only: they are told of every change
by `bind`, `replace` and `unbind`, synchronously, and own nothing. What may happen is `TRANSITIONS`; anything else is a
bug and raises.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field, frozen

from ..protocol import ABSENT, NULL, Json, errors
from ..protocol.errors import TriggerRejected, WireError
from .peer import DEFAULT_NAMESPACE, Peer

if TYPE_CHECKING:
    from ..protocol.messages import ErrorBody, RegisterTrigger
    from .access import Session

log = logging.getLogger(__name__)

ALIASES: Final = {"api": "http", "queue": "durable:subscriber", "event": "durable:subscriber"}
INSTALL_HINTS: Final = {
    "http": "http",
    "subscribe": "pubsub",
    "state": "state",
    "durable:subscriber": "queue",
    "stream": "stream",
    "stream:join": "stream",
    "stream:leave": "stream",
}


class BindingState(Enum):
    """Where a binding stands."""

    NEW = "new"
    LIVE = "live"
    PARKED = "parked"
    REFUSED = "refused"
    GONE = "gone"


TRANSITIONS: Final[dict[BindingState, frozenset[BindingState]]] = {
    BindingState.NEW: frozenset({BindingState.LIVE, BindingState.PARKED, BindingState.REFUSED, BindingState.GONE}),
    BindingState.LIVE: frozenset({BindingState.LIVE, BindingState.PARKED, BindingState.REFUSED, BindingState.GONE}),
    BindingState.PARKED: frozenset({BindingState.LIVE, BindingState.PARKED, BindingState.REFUSED, BindingState.GONE}),
    BindingState.REFUSED: frozenset({BindingState.LIVE, BindingState.PARKED, BindingState.REFUSED, BindingState.GONE}),
    BindingState.GONE: frozenset(),
}


class Reason(Enum):
    """Why a provider loses a binding."""

    UNREGISTERED = "unregistered"
    OWNER_LEFT = "owner_left"
    PROVIDER_LEFT = "provider_left"
    REJECTED = "rejected"


@define(eq=False, repr=False, kw_only=True)
class Binding:
    """One function bound to one trigger.

    `trigger_type` is the name its owner used, `type_id` the canonical one. `namespace` is the target function's;
    `trigger_namespace` the provider's if the owner named one; `home` the owner's own. `owner` of None: durable, nobody's
    connection ends it, and then `session` is its maker's. `as_sent` is the frame of its owner, if access control stored
    it under other ids. `why` says in words why it is parked or refused.
    """

    id: str
    trigger_type: str
    function_id: str
    config: Json = NULL
    metadata: Json = ABSENT
    owner: Peer | None = None
    namespace: str = DEFAULT_NAMESPACE
    trigger_namespace: str | None = None
    home: str = DEFAULT_NAMESPACE
    as_sent: "RegisterTrigger | None" = None
    session: "Session | None" = None
    type_id: str = field(init=False)
    state: BindingState = field(default=BindingState.NEW, init=False)
    claim: "TypeClaim | None" = field(default=None, init=False)
    why: str = field(default="", init=False)
    on_answer: Callable[[], None] | None = field(default=None, init=False)
    """Called once: when its provider has answered, or it is not live any more."""

    def __attrs_post_init__(self) -> None:
        self.type_id = ALIASES.get(self.trigger_type, self.trigger_type)

    def is_gone(self) -> bool:
        """Whether it stands in no table any more; may become true while somebody is told of it."""
        return self.state is BindingState.GONE

    def move(self, state: BindingState, claim: "TypeClaim | None" = None, why: str = "") -> None:
        """Change state, checked against `TRANSITIONS`."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"binding {self.id}: {self.state} -> {state}")
        self.state, self.claim, self.why = state, claim, why
        if state is not BindingState.LIVE:
            self.answered()

    def answered(self) -> None:
        """Tell whoever waits for the provider's answer; nobody most of the time."""
        on_answer, self.on_answer = self.on_answer, None
        if on_answer is not None:
            on_answer()


class Provider(Protocol):
    """What serves a trigger type: a built-in module, or a worker behind a socket. All synchronous."""

    def bind(self, binding: Binding) -> None:
        """Start serving a binding. Raises `TriggerRejected` (nothing is bound then)."""

    def replace(self, old: Binding, new: Binding) -> None:
        """`new` takes the place of `old`, same id. Raises `TriggerRejected`: `old` stays bound then."""

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """Stop serving a binding; must not raise."""


@define(eq=False, repr=False, kw_only=True)
class TypeClaim:
    """One provider of one trigger type in one namespace. The newest claim serves; older ones stand by."""

    id: str
    namespace: str
    owner: Peer
    provider: Provider
    description: str = ""
    config_format: Json = ABSENT
    call_format: Json = ABSENT
    return_format: Json = ABSENT


@frozen
class TriggerStatistics:
    """Bindings by state, and `types` provided."""

    live: int
    parked: int
    refused: int
    types: int


@define(eq=False, repr=False)
class Triggers:
    """The table of all bindings and all providers. Every method is one synchronous step."""

    _types: dict[tuple[str, str], list[TypeClaim]] = field(factory=dict)
    _bindings: dict[str, Binding] = field(factory=dict)
    # the same bindings under every name of their type: what a provider that comes or goes has to look at
    _by_type: dict[str, dict[str, Binding]] = field(factory=dict)
    durable: int = field(default=0, init=False)
    """Bindings that no connection owns."""

    # -- queries ------------------------------------------------------------------------------------------------------

    def get(self, binding_id: str) -> Binding | None:
        """The binding of that id in any state, or None."""
        return self._bindings.get(binding_id)

    def __iter__(self) -> Iterator[Binding]:
        """Every binding in any state, oldest first."""
        return iter(tuple(self._bindings.values()))

    def types(self) -> tuple[TypeClaim, ...]:
        """The serving claim of every provided type."""
        return tuple(claims[-1] for claims in self._types.values())

    def provider(self, namespace: str, type_id: str) -> TypeClaim | None:
        """The serving claim of one type in one namespace, or None."""
        claims = self._types.get((namespace, type_id))
        return claims[-1] if claims else None

    def resolve(self, binding: Binding) -> TypeClaim | None:
        """The provider that should serve a binding: the named namespace only, else home first, then `default`."""
        spaces = (
            (binding.trigger_namespace,) if binding.trigger_namespace is not None else (binding.home, DEFAULT_NAMESPACE)
        )
        for space in spaces:
            # a worker may provide a type under an alias's own name; the alias applies only when nobody does
            for type_id in (binding.trigger_type, binding.type_id):
                for claim in reversed(self._types.get((space, type_id), ())):
                    if not claim.owner.leaving:
                        return claim
        return None

    # -- bindings -----------------------------------------------------------------------------------------------------

    def register(self, binding: Binding) -> None:
        """Put a binding in, or in the place of the one with its id. Raises `TriggerRejected`; the old one stays then.

        Telling a provider can end its connection, and with it the owner's if they are one: both are looked at again.
        """
        owner = binding.owner
        if owner is not None and owner.leaving:
            return
        claim = self.resolve(binding)
        if claim is not None:
            self._register_with(claim, binding)
        else:
            old = self._bindings.get(binding.id)
            if old is not None:
                self._drop(old, Reason.UNREGISTERED)
            self._insert(binding)
            self._park(binding, self._why_parked(binding))
        if owner is not None and owner.leaving and binding.state is not BindingState.GONE:
            self._drop(binding, Reason.OWNER_LEFT)

    def _register_with(self, claim: TypeClaim, binding: Binding) -> None:
        old = self._bindings.get(binding.id)
        replaces = old is not None and old.state is BindingState.LIVE and old.claim is claim
        try:
            if old is not None and replaces:
                claim.provider.replace(old, binding)
            else:
                claim.provider.bind(binding)
        except TriggerRejected:
            if not claim.owner.leaving:
                raise
            self.register(binding)  # the provider was lost when it was told: this is for the next one
            return
        if old is not None:
            self._take_out(old)
        self._insert(binding)
        binding.move(BindingState.LIVE, claim)
        # what comes of telling others of the old one finds the new one in its place
        if old is not None and replaces:
            old.move(BindingState.GONE)
        elif old is not None:
            self._leave(old, BindingState.GONE, Reason.UNREGISTERED)

    def unregister(self, binding_id: str) -> Binding | None:
        """Take a binding out, whatever its state; returns it, or None when there is none of that id."""
        binding = self._bindings.get(binding_id)
        if binding is not None:
            self._drop(binding, Reason.UNREGISTERED)
        return binding

    def refuse(self, binding: Binding, why: str) -> None:
        """A worker provider answered a live binding with an error (spec/protocol.md §9.4)."""
        if binding.state is BindingState.LIVE:
            self._leave(binding, BindingState.REFUSED, Reason.REJECTED, why)

    def answered(self, peer: Peer, binding_id: str, error: "ErrorBody | None") -> Binding | None:
        """A provider answered: ignored unless `peer` serves the binding. Returns the binding if it was refused."""
        binding = self._bindings.get(binding_id)
        if binding is None or binding.claim is None or binding.claim.owner is not peer:
            return None
        if error is None:
            binding.answered()
            return None
        self.refuse(binding, f"{error.code}: {error.message}")
        return binding

    # -- providers ----------------------------------------------------------------------------------------------------

    def provide(self, claim: TypeClaim) -> TypeClaim:
        """Publish a provider, then hand it every binding that now resolves to it (spec/protocol.md §9.5)."""
        key = (claim.namespace, claim.id)
        claims = self._types.setdefault(key, [])
        previous = claims[-1] if claims else None
        same_owner = [other for other in claims if other.owner is claim.owner]
        for other in same_owner:
            claims.remove(other)
            other.owner.types.remove(other)
        claims.append(claim)
        claim.owner.types.append(claim)
        for binding in self._of_type(claim.id):
            if self.resolve(binding) is claim:
                if binding.claim is not previous or previous not in same_owner:
                    self._leave(binding, BindingState.PARKED, Reason.PROVIDER_LEFT)
                self._activate(binding, claim)
            elif binding.claim in same_owner:  # telling the one before ended the provider
                self._leave(binding, BindingState.PARKED, Reason.PROVIDER_LEFT)
                self._move_on(binding)
        return claim

    def withdraw(self, claim: TypeClaim) -> None:
        """A provider is gone: its bindings move to who provides the type now, or are parked (spec/protocol.md §9.7)."""
        key = (claim.namespace, claim.id)
        claims = self._types.get(key, [])
        if claim not in claims:
            return
        claims.remove(claim)
        claim.owner.types.remove(claim)
        if not claims:
            del self._types[key]
        for binding in self._of_type(claim.id):
            if binding.claim is claim:
                self._leave(binding, BindingState.PARKED, Reason.PROVIDER_LEFT)
                self._move_on(binding)

    def withdraw_type(self, owner: Peer, namespace: str, type_id: str) -> bool:
        """`withdraw` by name; False when `owner` does not provide it."""
        for claim in tuple(owner.types):
            if (claim.namespace, claim.id) == (namespace, type_id):
                self.withdraw(claim)
                return True
        return False

    # -- the end of a peer --------------------------------------------------------------------------------------------

    def release(self, peer: Peer) -> None:
        """Disconnect cleanup (spec/protocol.md §13.4): its bindings go, its types are withdrawn."""
        for binding in tuple(peer.bindings.values()):
            self._drop(binding, Reason.OWNER_LEFT)
        for claim in tuple(peer.types):
            self.withdraw(claim)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _of_type(self, type_id: str) -> tuple[Binding, ...]:
        return tuple(self._by_type.get(type_id, {}).values())

    def _insert(self, binding: Binding) -> None:
        self._bindings[binding.id] = binding
        for type_id in {binding.trigger_type, binding.type_id}:
            self._by_type.setdefault(type_id, {})[binding.id] = binding
        if binding.owner is not None:
            binding.owner.bindings[binding.id] = binding
        else:
            self.durable += 1

    def _take_out(self, binding: Binding) -> None:
        if self._bindings.get(binding.id) is binding:
            del self._bindings[binding.id]
            for type_id in {binding.trigger_type, binding.type_id}:
                del self._by_type[type_id][binding.id]
                if not self._by_type[type_id]:
                    del self._by_type[type_id]
            if binding.owner is None:
                self.durable -= 1
        if binding.owner is not None and binding.owner.bindings.get(binding.id) is binding:
            del binding.owner.bindings[binding.id]

    def _drop(self, binding: Binding, reason: Reason) -> None:
        self._take_out(binding)
        self._leave(binding, BindingState.GONE, reason)

    def _leave(self, binding: Binding, state: BindingState, reason: Reason, why: str = "") -> None:
        """Change to a state without a provider, then tell the one it had: once, whatever comes of telling it."""
        claim = binding.claim
        if binding.state is not BindingState.GONE:
            binding.move(state, None, why)
        if claim is not None:
            claim.provider.unbind(binding, reason)

    def _activate(self, binding: Binding, claim: TypeClaim) -> None:
        if binding.is_gone():
            return  # its owner was lost while its last provider was told
        try:
            claim.provider.bind(binding)
        except TriggerRejected as error:
            if binding.is_gone():
                return
            if claim.owner.leaving:
                self._move_on(binding)
                return
            log.warning("trigger %s (%s -> %s): %s", binding.id, binding.type_id, binding.function_id, error.message)
            binding.move(BindingState.REFUSED, None, error.message)
            if binding.owner is not None:
                binding.owner.binding_refused(binding, error)
        else:
            if binding.is_gone():  # its owner was lost while the provider was told
                claim.provider.unbind(binding, Reason.OWNER_LEFT)
                return
            binding.move(BindingState.LIVE, claim)

    def _move_on(self, binding: Binding) -> None:
        """Its provider is gone: to who provides the type now, or into the waiting room."""
        if binding.state is BindingState.GONE:
            return
        successor = self.resolve(binding)
        if successor is None:
            self._park(binding, self._why_parked(binding))
        else:
            self._activate(binding, successor)

    def _park(self, binding: Binding, why: str) -> None:
        binding.move(BindingState.PARKED, None, why)
        log.info("trigger %s (%s -> %s) waits: %s", binding.id, binding.trigger_type, binding.function_id, why)

    def _why_parked(self, binding: Binding) -> str:
        space = binding.trigger_namespace or binding.home
        text = f"nobody provides the trigger type '{binding.trigger_type}'"
        if space != DEFAULT_NAMESPACE:
            text += f" in namespace '{space}'"
        hint = INSTALL_HINTS.get(binding.type_id)
        return f"{text}; add the built-in worker '{hint}' to the configuration" if hint else text

    def statistics(self) -> TriggerStatistics:
        """A frozen picture of the table."""

        def count(state: BindingState, bindings: Iterable[Binding]) -> int:
            return sum(binding.state is state for binding in bindings)

        everything = tuple(self._bindings.values())
        return TriggerStatistics(
            live=count(BindingState.LIVE, everything),
            parked=count(BindingState.PARKED, everything),
            refused=count(BindingState.REFUSED, everything),
            types=len(self._types),
        )


def rejection(error: TriggerRejected) -> WireError:
    """The error as the binding's owner gets it: always code `trigger_registration_failed`."""
    return WireError(error.message, errors.TRIGGER_REGISTRATION_FAILED)
