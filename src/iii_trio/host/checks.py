"""What the settings of a plan name and no settings class can see: certificates, header names, two workers on one port.

The same for the start, for `iii-trio check` and for a file that changes, so that nothing is begun with half of it.
"""

from collections.abc import Iterator

from ..config import LOOPBACK
from ..modules.http.middleware import PHASE
from ..protocol.errors import ConfigError
from .access import WorkerPort, server_context
from .crew import CHECKS
from .plan import Block, Plan

EVERYWHERE = frozenset({"0.0.0.0", "::"})
SAME_MACHINE = {LOOPBACK: frozenset({"127.0.0.1", "::1", LOOPBACK})}


def check_plan(plan: Plan, engine_token: str | None) -> list[WorkerPort]:
    """The worker ports of a plan, once all that it names could be used. Raises `ConfigError` naming file, line and key."""
    for block in plan.blocks.values():
        try:
            CHECKS.get(block.entry.name, lambda _: None)(block.settings)
            tls = getattr(block.settings, "tls", None)
            if tls is not None:
                server_context(tls)
        except ConfigError as error:
            raise block.located(error) from None
    return [WorkerPort.of(settings, engine_token) for settings in plan.listeners]


def remarks(plan: Plan) -> Iterator[str]:
    """What is no mistake in itself, and yet not what was meant."""
    yield from _shared_ports(plan)
    for item in () if plan.http is None else plan.http.middleware:
        if item.phase != PHASE:
            text = f"the middleware '{item.function_id}' is never called, for there is no phase '{item.phase}'"
            yield f"{plan.blocks['http'].place}{text}; use {PHASE}"


def _shared_ports(plan: Plan) -> Iterator[str]:
    """Each two workers of which only one can have the port that both ask for."""
    seen: list[Block] = []
    for block in plan.blocks.values():
        if not getattr(block.settings, "port", 0):
            continue
        for other in seen:
            if other.settings.port == block.settings.port and _meet(other.settings.host, block.settings.host):
                yield (
                    f"{block.place}'{block.entry.label}' asks for port {block.settings.port}, "
                    f"and so does '{other.entry.label}'; one of them cannot start"
                )
        seen.append(block)


def _meet(one: str, other: str) -> bool:
    """Whether two hosts have an address in common, as far as their spelling tells."""
    if one in EVERYWHERE or other in EVERYWHERE:
        return True
    return bool(SAME_MACHINE.get(one, {one}) & SAME_MACHINE.get(other, {other}))
