"""Configuration: YAML with positions, the engine's config file, and settings classes with tiers, bounds and schemas."""

from iii_trio.config.blocks import (
    SETTINGS,
    AdminSettings,
    ConfigurationAdapter,
    ConfigurationSettings,
    CronAdapter,
    CronLockSettings,
    CronSettings,
    EntryFilesSettings,
    NoSettings,
    PubSubAdapter,
    PubSubSettings,
    StateAdapter,
    StateSettings,
    StreamAdapter,
    StreamSettings,
    StreamStoreSettings,
    WorkerManagerSettings,
    read_settings,
)
from iii_trio.config.file import EngineConfig, Entry, default_config, load_config, parse_config
from iii_trio.config.http_blocks import (
    CorsSettings,
    HttpFunctionsSecurity,
    HttpFunctionsSettings,
    HttpSettings,
    MiddlewareSettings,
)
from iii_trio.config.live import Live, LiveStatistics
from iii_trio.config.names import WORKERS, WorkerName
from iii_trio.config.parts import (
    LOOPBACK,
    StoreSettings,
)
from iii_trio.config.problems import ConfigError, Position, Problem
from iii_trio.config.queue_blocks import (
    QueueAdapter,
    QueueModuleSettings,
    QueueSettings,
    QueueStoreSettings,
)
from iii_trio.config.rbac import ExposeSettings, RbacSettings, TlsSettings
from iii_trio.config.schema import as_value, schema_of
from iii_trio.config.settings import (
    SettingInfo,
    Tier,
    changed_settings,
    no_op,
    setting,
    setting_fields,
    setting_info,
)
from iii_trio.config.structuring import Structured, structure
from iii_trio.config.templates import Expanded, expand
from iii_trio.config.watch import watch_directory
from iii_trio.config.yaml import Value, YamlMapping, YamlSequence, core_scalar, load_yaml

__all__ = [
    "LOOPBACK",
    "SETTINGS",
    "WORKERS",
    "AdminSettings",
    "ConfigError",
    "ConfigurationAdapter",
    "ConfigurationSettings",
    "CorsSettings",
    "CronAdapter",
    "CronLockSettings",
    "CronSettings",
    "EngineConfig",
    "Entry",
    "EntryFilesSettings",
    "Expanded",
    "ExposeSettings",
    "HttpFunctionsSecurity",
    "HttpFunctionsSettings",
    "HttpSettings",
    "Live",
    "LiveStatistics",
    "MiddlewareSettings",
    "NoSettings",
    "Position",
    "Problem",
    "PubSubAdapter",
    "PubSubSettings",
    "QueueAdapter",
    "QueueModuleSettings",
    "QueueSettings",
    "QueueStoreSettings",
    "RbacSettings",
    "SettingInfo",
    "StateAdapter",
    "StateSettings",
    "StoreSettings",
    "StreamAdapter",
    "StreamSettings",
    "StreamStoreSettings",
    "Structured",
    "Tier",
    "TlsSettings",
    "Value",
    "WorkerManagerSettings",
    "WorkerName",
    "YamlMapping",
    "YamlSequence",
    "as_value",
    "changed_settings",
    "core_scalar",
    "default_config",
    "expand",
    "load_config",
    "load_yaml",
    "no_op",
    "parse_config",
    "read_settings",
    "schema_of",
    "setting",
    "setting_fields",
    "setting_info",
    "structure",
    "watch_directory",
]
