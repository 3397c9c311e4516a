"""Every bound of the house in one table: default, what happens when it is reached, why, and the key that changes it.

Constants are what the code reads; `TABLE` is the same list as data, for the documentation and for `iii-trio tree`.
A key of `None` means that the bound is part of the protocol or of our own promises and cannot be configured.
"""

from typing import Final

from attrs import frozen

KIB: Final = 1024
MIB: Final = 1024 * KIB

# -- messages on a socket
MAX_MESSAGE: Final = 64 * MIB
FRAGMENT: Final = 1 * MIB
OVERSIZE_HEAD: Final = 64 * KIB
INCREMENTAL_FRAME: Final = 256 * KIB
FRAMES_PER_WAKEUP: Final = 512
HANDSHAKE_HEAD: Final = 64 * KIB
MAX_DEPTH: Final = 128

# -- a peer's outbox
OUTBOX_BUSY: Final = 8 * MIB
OUTBOX_OVERLOADED: Final = 64 * MIB
OUTBOX_HARD: Final = 128 * MIB
BUFFERED_ALL: Final = 1024 * MIB

# -- what a peer of a given generation takes (spec/sdk.md §7)
PEER_MESSAGE_SMALL: Final = 1 * MIB
PEER_MESSAGE_DEFAULT: Final = 16 * MIB
PEER_MESSAGE_LARGE: Final = 64 * MIB

# -- intake and calls of one connection
PARKED_FRAMES: Final = 1_000
PARKED_BYTES: Final = 16 * MIB
CALLS_PER_PEER: Final = 100_000
ENQUEUES_PER_PEER: Final = 10_000
FUNCTIONS_PER_PEER: Final = 100_000
REGISTERED_BYTES: Final = 256 * 1024
TYPES_PER_PEER: Final = 1_000
BINDINGS_PER_PEER: Final = 100_000
PENDING_SOCKETS: Final = 1_024
PEERS: Final = 10_000
ORIGINS_NAMED: Final = 100

# -- channels
CHANNEL_ITEMS: Final = 64
CHANNEL_ITEMS_MOST: Final = 1_024
CHANNEL_BYTES: Final = 16 * MIB
CHANNEL_BYTES_ALL: Final = 256 * MIB
CHANNEL_CHUNK: Final = 64 * KIB
CHANNEL_OUTBOX: Final = 256 * KIB
CHANNELS_PER_PEER: Final = 10_000

# -- deliveries (conditions and handlers of triggers)
FIRING_RUNNING: Final = 256
FIRING_WAITING: Final = 10_000

# -- modules
TASK_HANDLERS: Final = 1_024
STORE_OPS: Final = 10_000
STORE_BYTES: Final = 64 * MIB
STORE_VALUE: Final = 256 * MIB
STORE_GROUP_OPS: Final = 1_000
STORE_GROUP_BYTES: Final = 16 * MIB
STORE_CALLBACKS: Final = 512
STORE_WAL: Final = 64 * MIB
DURABLE_TRIGGERS: Final = 10_000
OUTBOX_EVENTS: Final = 1_000_000
OUTBOX_PAGE: Final = 1_000
OUTBOX_PAGE_BYTES: Final = 16 * MIB
EXPIRED_KEYS: Final = 1_000
PATTERN_SEGMENTS: Final = 64
QUEUE_SHELF: Final = 256 * MIB
QUEUE_MESSAGES: Final = 10_000_000
QUEUE_PAGE: Final = 4 * MIB
QUEUE_ERROR_CHARS: Final = 4_096
QUEUE_DLQ_PAGE: Final = 1_000
QUEUE_NAME_CHARS: Final = 1_024
QUEUE_BAGGAGE_CHARS: Final = 8_192
LOG_RECORDS: Final = 10_000
LOG_CHARS: Final = 16 * MIB
LOG_MESSAGE_CHARS: Final = 32_768
CHILD_LINE_CHARS: Final = 16_384
HTTP_BODY: Final = 16 * MIB
HTTP_FORM: Final = 256 * KIB
HTTP_WAITING: Final = 1_024
HTTP_BODIES_ALL: Final = 256 * MIB
HTTP_UNSENT_ALL: Final = 256 * MIB
HTTP2_STREAMS: Final = 100
HTTP2_WINDOW: Final = 256 * KIB
HTTP2_WINDOWS: Final = 8 * MIB
HTTP2_FRAME: Final = 16 * KIB
HTTP2_OUTBOX: Final = 256 * KIB
HTTP2_NUISANCE: Final = 1_000
HTTP2_SETTINGS: Final = 100
TELEMETRY_READ: Final = 256 * KIB
HTTP_CALLS: Final = 4_096
HTTP_HOST_RUNNING: Final = 100
HTTP_HOST_WAITING: Final = 400
HTTP_HOST_BYTES: Final = 64 * MIB
HTTP_RESPONSE: Final = 16 * MIB
HTTP_RESPONSE_ALL: Final = 256 * MIB
HTTP_METADATA: Final = 4 * KIB
HTTP_LOOKUPS: Final = 8
HTTP_CHECKS: Final = 10_000
REFUSED_FUNCTIONS: Final = 1_000
STREAM_SOCKETS: Final = 10_000
STREAM_SUBSCRIPTIONS: Final = 1_000
STREAM_MESSAGE: Final = 256 * KIB
STREAM_FRAMES: Final = 64
STREAM_OUTBOX: Final = 256 * KIB
STREAM_BACKLOG: Final = 256
STREAM_BACKLOG_BYTES: Final = 1 * MIB
STREAM_PROVIDER_CALLS: Final = 1_024
BRIDGE_CALLS: Final = 10_000
BRIDGE_WAITING: Final = 1_000
BRIDGE_WAITING_BYTES: Final = 16 * MIB
NAME_CHARS: Final = 280
CONFIGURATION_ENTRIES: Final = 1_000
CONFIGURATION_VALUE: Final = 1 * MIB
CONFIGURATION_HISTORY: Final = 20

# -- a worker of our own SDK
WORKER_HANDLERS: Final = 256
WORKER_THREADS: Final = 40
WORKER_BACKLOG: Final = 256
WORKER_BACKLOG_HARD: Final = 8_192
WORKER_BINDINGS: Final = 10_000

# -- time, in seconds
HANDSHAKE_S: Final = 10.0
PING_AFTER_S: Final = 20.0
DEAD_AFTER_S: Final = 60.0
STALL_S: Final = 30.0
CLOSE_S: Final = 5.0
PROBE_S: Final = 5.0
HOOK_S: Final = 5.0
CONDITION_S: Final = 30.0
PROVIDER_ACK_S: Final = 10.0
NAMESPACE_GRACE_S: Final = 5.0
ACCEPT_PAUSE_S: Final = 1.0
CHANNEL_UNATTACHED_S: Final = 300.0
CHANNEL_STALL_S: Final = 3600.0
CHANNEL_KEEPALIVE_S: Final = 60.0
BRIDGE_CALL_S: Final = 30.0
BRIDGE_PATIENCE_S: Final = 5.0
HTTP_CALL_S: Final = 30.0
HTTP_CONNECT_S: Final = 3.0
HTTP_LOOKUP_S: Final = 5.0
HTTP_IDLE_S: Final = 4.0
HTTP_UNUSED_S: Final = 5.0
HTTP_PATIENCE_S: Final = 5.0
INVOCATION_S: Final = 3600.0
DEADLINE_S: Final = 366 * 86_400.0
DELIVERY_S: Final = 1800.0
SHUTDOWN_GRACE_S: Final = 5.0
CANCEL_GRACE_S: Final = 5.0
LATE_WAKEUP_S: Final = 1.0


@frozen
class Limit:
    """One bound: `name` is the constant above, `value` its default (bytes, items or seconds as `unit` says)."""

    name: str
    value: float
    unit: str
    when_full: str
    reason: str
    key: str | None = None


TABLE: Final[tuple[Limit, ...]] = (
    Limit(
        "MAX_MESSAGE", MAX_MESSAGE, "bytes", "skipped; `payload_too_large` or close 1009", "largest message of any SDK"
    ),
    Limit("FRAGMENT", FRAGMENT, "bytes", "message leaves in fragments", "control frames pass between fragments"),
    Limit("OVERSIZE_HEAD", OVERSIZE_HEAD, "bytes", "rest is skipped", "enough to find an invocation id"),
    Limit("INCREMENTAL_FRAME", INCREMENTAL_FRAME, "bytes", "unmasked as it arrives", "no long step on the loop"),
    Limit("FRAMES_PER_WAKEUP", FRAMES_PER_WAKEUP, "frames", "the others get their turn", "fairness between sockets"),
    Limit("HANDSHAKE_HEAD", HANDSHAKE_HEAD, "bytes", "refused with 431", "nobody is known yet"),
    Limit("MAX_DEPTH", MAX_DEPTH, "levels", "decode error", "what one peer sends must not break the next"),
    Limit("OUTBOX_BUSY", OUTBOX_BUSY, "bytes", "queue, HTTP and fan-out wait or shed", "slow readers slow producers"),
    Limit("OUTBOX_OVERLOADED", OUTBOX_OVERLOADED, "bytes", "new calls get `worker_overloaded`", "one whole message"),
    Limit("OUTBOX_HARD", OUTBOX_HARD, "bytes", "close 1013", "memory of one stalled peer"),
    Limit(
        "BUFFERED_ALL", BUFFERED_ALL, "bytes", "who holds most: close 1013", "many stalled peers", "max_buffered_bytes"
    ),
    Limit("PEER_MESSAGE_SMALL", PEER_MESSAGE_SMALL, "bytes", "`payload_too_large`", "Python SDKs before 0.24"),
    Limit("PEER_MESSAGE_DEFAULT", PEER_MESSAGE_DEFAULT, "bytes", "`payload_too_large`", "SDKs that declare nothing"),
    Limit("PEER_MESSAGE_LARGE", PEER_MESSAGE_LARGE, "bytes", "`payload_too_large`", "`large-messages.v1`"),
    Limit("PARKED_FRAMES", PARKED_FRAMES, "frames", "the socket is not read", "registrations before a namespace"),
    Limit("PARKED_BYTES", PARKED_BYTES, "bytes", "the socket is not read", "registrations before a namespace"),
    Limit("CALLS_PER_PEER", CALLS_PER_PEER, "calls", "`too_many_calls`", "waited for or not, none may fill the tables"),
    Limit("ENQUEUES_PER_PEER", ENQUEUES_PER_PEER, "enqueues", "`too_many_calls`", "they wait for one store together"),
    Limit("REGISTERED_BYTES", REGISTERED_BYTES, "bytes", "left out, with an error", "listings repeat it to everybody"),
    Limit("FUNCTIONS_PER_PEER", FUNCTIONS_PER_PEER, "functions", "refused with an error", "one worker's footprint"),
    Limit("TYPES_PER_PEER", TYPES_PER_PEER, "trigger types", "refused with an error", "one worker's footprint"),
    Limit(
        "BINDINGS_PER_PEER", BINDINGS_PER_PEER, "bindings", "`trigger_registration_failed`", "one worker's footprint"
    ),
    Limit("PENDING_SOCKETS", PENDING_SOCKETS, "sockets", "the oldest is closed", "handshakes that never finish"),
    Limit("ORIGINS_NAMED", ORIGINS_NAMED, "origins", "refused without a line in the log", "one line for each origin"),
    Limit("PEERS", PEERS, "connections", "closed 1013 after the handshake", "file descriptors"),
    Limit("CHANNEL_ITEMS", CHANNEL_ITEMS, "messages", "its writer is not read", "a slow reader", "buffer_size"),
    Limit("CHANNEL_ITEMS_MOST", CHANNEL_ITEMS_MOST, "messages", "taken as this", "a caller's own `buffer_size`"),
    Limit("CHANNEL_BYTES", CHANNEL_BYTES, "bytes", "its writer is not read", "messages of any size"),
    Limit("CHANNEL_BYTES_ALL", CHANNEL_BYTES_ALL, "bytes", "one message a channel", "all channels together"),
    Limit("CHANNEL_CHUNK", CHANNEL_CHUNK, "bytes", "binary leaves in several", "Python readers take 1 MiB"),
    Limit("CHANNEL_OUTBOX", CHANNEL_OUTBOX, "bytes", "the channel's queue waits", "one socket's share"),
    Limit("CHANNELS_PER_PEER", CHANNELS_PER_PEER, "channels", "`too_many_channels`", "one worker's footprint"),
    Limit("FIRING_RUNNING", FIRING_RUNNING, "deliveries", "wait in their lane", "handlers at work per provider"),
    Limit("FIRING_WAITING", FIRING_WAITING, "deliveries", "dropped and counted", "events faster than handlers"),
    Limit("TASK_HANDLERS", TASK_HANDLERS, "tasks", "`worker_overloaded`", "built-ins that wait for peers"),
    Limit("STORE_OPS", STORE_OPS, "operations", "refused or waited for", "writes faster than the disk"),
    Limit("STORE_BYTES", STORE_BYTES, "bytes", "refused or waited for", "writes faster than the disk"),
    Limit("STORE_VALUE", STORE_VALUE, "bytes", "refused", "SQLite's own bound would fail a whole group"),
    Limit("STORE_GROUP_OPS", STORE_GROUP_OPS, "operations", "the next transaction", "answers keep flowing"),
    Limit("STORE_GROUP_BYTES", STORE_GROUP_BYTES, "bytes", "the next transaction", "answers keep flowing"),
    Limit("STORE_CALLBACKS", STORE_CALLBACKS, "callbacks", "other tasks get their turn", "fairness of the loop"),
    Limit("STORE_WAL", STORE_WAL, "bytes", "cut back at a checkpoint", "disk space after a burst"),
    Limit(
        "DURABLE_TRIGGERS", DURABLE_TRIGGERS, "triggers", "`trigger_registration_failed`", "they are looked at always"
    ),
    Limit("OUTBOX_EVENTS", OUTBOX_EVENTS, "events", "writes they are for are refused", "a queue that is gone for good"),
    Limit("OUTBOX_PAGE", OUTBOX_PAGE, "events", "the rest is read back", "events of one queue held in memory"),
    Limit(
        "OUTBOX_PAGE_BYTES", OUTBOX_PAGE_BYTES, "bytes", "the rest is read back", "events of one queue held in memory"
    ),
    Limit("EXPIRED_KEYS", EXPIRED_KEYS, "keys", "the next transaction", "many keys whose time is up at once"),
    Limit("PATTERN_SEGMENTS", PATTERN_SEGMENTS, "segments", "`trigger_registration_failed`", "a tree of wildcards"),
    Limit("QUEUE_SHELF", QUEUE_SHELF, "bytes", "read back from the log", "payloads that wait"),
    Limit("QUEUE_MESSAGES", QUEUE_MESSAGES, "messages", "refused", "disk: they wait in the file, not in memory"),
    Limit("QUEUE_PAGE", QUEUE_PAGE, "bytes", "read back one by one", "payloads read ahead of their deliveries at once"),
    Limit("QUEUE_ERROR_CHARS", QUEUE_ERROR_CHARS, "characters", "cut", "a handler's error kept with the message"),
    Limit("QUEUE_DLQ_PAGE", QUEUE_DLQ_PAGE, "dead letters", "the next page", "one answer's size"),
    Limit("QUEUE_NAME_CHARS", QUEUE_NAME_CHARS, "characters", "refused", "they are in memory"),
    Limit("QUEUE_BAGGAGE_CHARS", QUEUE_BAGGAGE_CHARS, "characters", "left out", "what W3C asks for; kept per message"),
    Limit("LOG_RECORDS", LOG_RECORDS, "records", "dropped and counted", "a blocked stdout stops nothing"),
    Limit("LOG_CHARS", LOG_CHARS, "characters", "dropped and counted", "a blocked stdout stops nothing"),
    Limit("LOG_MESSAGE_CHARS", LOG_MESSAGE_CHARS, "characters", "cut", "one message does not fill the log"),
    Limit("CHILD_LINE_CHARS", CHILD_LINE_CHARS, "characters", "passed on in pieces", "output without line ends"),
    Limit(
        "WORKER_HANDLERS", WORKER_HANDLERS, "handlers", "the rest waits", "one worker process", "Worker(concurrency=)"
    ),
    Limit("WORKER_THREADS", WORKER_THREADS, "threads", "the rest waits", "handlers that are plain functions"),
    Limit("WORKER_BACKLOG", WORKER_BACKLOG, "invocations", "the socket is not read", "back-pressure to the engine"),
    Limit(
        "WORKER_BACKLOG_HARD",
        WORKER_BACKLOG_HARD,
        "invocations",
        "`worker_overloaded`",
        "a paused socket that must be read",
    ),
    Limit("WORKER_BINDINGS", WORKER_BINDINGS, "changes", "refused", "a slow trigger provider"),
    Limit("CONFIGURATION_ENTRIES", CONFIGURATION_ENTRIES, "entries", "refused", "each is a file and held in memory"),
    Limit(
        "CONFIGURATION_VALUE", CONFIGURATION_VALUE, "bytes", "refused", "settings are no data; schemas are bound too"
    ),
    Limit("CONFIGURATION_HISTORY", CONFIGURATION_HISTORY, "values", "the oldest goes", "enough to find the way back"),
    Limit("TELEMETRY_READ", TELEMETRY_READ, "bytes", "counted, not read", "a frame of metrics is read on the loop"),
    Limit("HTTP_FORM", HTTP_FORM, "bytes", "not parsed", "a form travels inside the call, files in base64"),
    Limit("HTTP_WAITING", HTTP_WAITING, "requests", "503", "bursts", "http.concurrency_queue_limit"),
    Limit("HTTP2_STREAMS", HTTP2_STREAMS, "requests", "refused, to be asked again", "at once on one connection"),
    Limit("HTTP2_WINDOW", HTTP2_WINDOW, "bytes", "the client waits", "what of one upload nobody has read yet"),
    Limit("HTTP2_WINDOWS", HTTP2_WINDOWS, "bytes", "the client waits", "all uploads of one connection"),
    Limit("HTTP2_FRAME", HTTP2_FRAME, "bytes", "GOAWAY", "a frame is held until it is whole"),
    Limit("HTTP2_OUTBOX", HTTP2_OUTBOX, "bytes", "its streams wait", "what one connection still has to send"),
    Limit("HTTP2_NUISANCE", HTTP2_NUISANCE, "points", "GOAWAY", "frames that carry nothing; 100 come back in a second"),
    Limit("HTTP2_SETTINGS", HTTP2_SETTINGS, "frames", "GOAWAY", "settings of one connection are kept"),
    Limit("HTTP_BODIES_ALL", HTTP_BODIES_ALL, "bytes", "503", "bodies that are parsed, of all requests under way"),
    Limit("HTTP_UNSENT_ALL", HTTP_UNSENT_ALL, "bytes", "the oldest is broken off", "clients that ask and do not read"),
    Limit("HTTP_BODY", HTTP_BODY, "bytes", "413", "a request body is held in memory", "http.body_limit"),
    Limit("HTTP_CALLS", HTTP_CALLS, "calls", "`worker_overloaded`", "HTTP-invoked functions, all hosts together"),
    Limit("HTTP_HOST_RUNNING", HTTP_HOST_RUNNING, "calls", "the rest waits", "connections to one host"),
    Limit("HTTP_HOST_WAITING", HTTP_HOST_WAITING, "calls", "`worker_overloaded`", "a host that does not keep up"),
    Limit("HTTP_HOST_BYTES", HTTP_HOST_BYTES, "bytes", "`worker_overloaded`", "payloads on their way to one host"),
    Limit("HTTP_RESPONSE", HTTP_RESPONSE, "bytes", "`payload_too_large`", "it is held in memory", "response_limit"),
    Limit("HTTP_RESPONSE_ALL", HTTP_RESPONSE_ALL, "bytes", "`worker_overloaded`", "all answers that are being read"),
    Limit("HTTP_METADATA", HTTP_METADATA, "bytes", "left out and logged", "what servers take as one header"),
    Limit("HTTP_LOOKUPS", HTTP_LOOKUPS, "threads", "the rest waits", "resolvers that do not answer"),
    Limit("HTTP_CHECKS", HTTP_CHECKS, "functions", "refused", "registrations whose host is looked up"),
    Limit("REFUSED_FUNCTIONS", REFUSED_FUNCTIONS, "refusals", "the oldest is forgotten", "why a function is missing"),
    Limit("STREAM_SOCKETS", STREAM_SOCKETS, "sockets", "closed 1013 after the handshake", "file descriptors"),
    Limit("STREAM_SUBSCRIPTIONS", STREAM_SUBSCRIPTIONS, "subscriptions", "`unauthorized`", "one socket's footprint"),
    Limit("STREAM_MESSAGE", STREAM_MESSAGE, "bytes", "close 1009", "subscribers send joins and leaves alone"),
    Limit("STREAM_FRAMES", STREAM_FRAMES, "frames", "the socket is not read", "joins that wait for their handlers"),
    Limit("STREAM_OUTBOX", STREAM_OUTBOX, "bytes", "its events wait", "a subscriber that reads slowly"),
    Limit(
        "STREAM_BACKLOG",
        STREAM_BACKLOG,
        "events",
        "dropped; `sync` once it reads again",
        "a subscriber that reads slowly",
        "stream.adapter.config.channel_size",
    ),
    Limit(
        "STREAM_BACKLOG_BYTES",
        STREAM_BACKLOG_BYTES,
        "bytes",
        "dropped; `sync` once it reads again",
        "events of any size",
    ),
    Limit("STREAM_PROVIDER_CALLS", STREAM_PROVIDER_CALLS, "calls", "refused", "providers that call themselves"),
    Limit("BRIDGE_CALLS", BRIDGE_CALLS, "requests", "refused", "requests that another engine has not answered"),
    Limit("BRIDGE_WAITING", BRIDGE_WAITING, "requests", "refused", "requests while another engine is away"),
    Limit("BRIDGE_WAITING_BYTES", BRIDGE_WAITING_BYTES, "bytes", "refused", "requests while another engine is away"),
    Limit("BRIDGE_CALL_S", BRIDGE_CALL_S, "s", "an error", "an engine that does not answer"),
    Limit("BRIDGE_PATIENCE_S", BRIDGE_PATIENCE_S, "s", "requests fail at once", "another engine that restarts"),
    Limit("HANDSHAKE_S", HANDSHAKE_S, "s", "closed", "half a request head", "worker-manager.handshake_timeout_ms"),
    Limit("PING_AFTER_S", PING_AFTER_S, "s", "ping", "dead peers are found"),
    Limit("DEAD_AFTER_S", DEAD_AFTER_S, "s", "ended", "CPU-bound workers are given a minute"),
    Limit("STALL_S", STALL_S, "s", "close 1013", "a peer that stops reading"),
    Limit("CLOSE_S", CLOSE_S, "s", "dropped", "close handshake"),
    Limit("PROBE_S", PROBE_S, "s", "the incumbent is retired", "a name held by a dead connection"),
    Limit("HOOK_S", HOOK_S, "s", "denied", "auth function and hooks fail closed"),
    Limit("CONDITION_S", CONDITION_S, "s", "delivery failed", "a condition that never answers"),
    Limit("PROVIDER_ACK_S", PROVIDER_ACK_S, "s", "accepted", "providers that do not answer"),
    Limit(
        "NAMESPACE_GRACE_S", NAMESPACE_GRACE_S, "s", "`default`", "SDKs name it last", "registration_namespace_grace_ms"
    ),
    Limit("ACCEPT_PAUSE_S", ACCEPT_PAUSE_S, "s", "accepts again", "no file descriptors left"),
    Limit("CHANNEL_UNATTACHED_S", CHANNEL_UNATTACHED_S, "s", "ended", "an end that nobody ever attached"),
    Limit("CHANNEL_STALL_S", CHANNEL_STALL_S, "s", "close 1013", "a reader that takes nothing for so long is gone"),
    Limit("CHANNEL_KEEPALIVE_S", CHANNEL_KEEPALIVE_S, "s", "TCP asks for a sign of life", "half-open channel ends"),
    Limit("HTTP_CALL_S", HTTP_CALL_S, "s", "`http_request_failed`", "an endpoint that hangs", "invocation.timeout_ms"),
    Limit("HTTP_CONNECT_S", HTTP_CONNECT_S, "s", "the host's next address", "an address nobody answers at"),
    Limit("HTTP_LOOKUP_S", HTTP_LOOKUP_S, "s", "left to the calls", "a resolver that hangs while functions register"),
    Limit("HTTP_UNUSED_S", HTTP_UNUSED_S, "s", "204", "a response begun after its result", "http.null_result_timeout"),
    Limit("HTTP_PATIENCE_S", HTTP_PATIENCE_S, "s", "cut off", "a stream whose writer or handler has failed"),
    Limit("HTTP_IDLE_S", HTTP_IDLE_S, "s", "closed", "less than the 5 s after which servers hang up"),
    Limit("INVOCATION_S", INVOCATION_S, "s", "`TIMEOUT`", "every call ends", "default_invocation_timeout_ms"),
    Limit("DEADLINE_S", DEADLINE_S, "s", "taken as this", "a caller's own `deadline_ms`"),
    Limit("CANCEL_GRACE_S", CANCEL_GRACE_S, "s", "forgotten", "an executor's answer to a call that was given up"),
    Limit("DELIVERY_S", DELIVERY_S, "s", "`TIMEOUT`, a failed attempt", "a handler that hangs", "queue.timeout_ms"),
    Limit("SHUTDOWN_GRACE_S", SHUTDOWN_GRACE_S, "s", "cancelled", "running handlers finish", "shutdown_grace_ms"),
)
