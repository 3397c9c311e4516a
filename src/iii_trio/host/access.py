"""From the settings of a worker port to its rules and its TLS: checked, and read, before anything is opened."""

import ssl
from pathlib import Path
from typing import Final

from attrs import frozen

from ..config import ConfigError, ExposeSettings, Problem, RbacSettings, TlsSettings, WorkerManagerSettings, as_value
from ..engine import Engine, ExposeFilter, Hooks, Listener, Pattern, Rules

ENCRYPTED: Final = "is encrypted; decrypt it, as nobody can be asked for its password here"


@frozen
class WorkerPort:
    """One worker port that is to be opened."""

    settings: WorkerManagerSettings
    rules: Rules
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, settings: WorkerManagerSettings, engine_token: str | None) -> "WorkerPort":
        """The port of these settings; `engine_token` counts where they name neither a token nor an auth function.

        Raises `ConfigError` naming key and file when certificate or key cannot be used.
        """
        tls = None if settings.tls is None else server_context(settings.tls)
        return cls(settings, rules_of(settings, engine_token), tls)

    def listener(self, core: Engine) -> Listener:
        """The listener, which binds nothing before it runs."""
        return Listener(
            core=core,
            host=self.settings.host,
            port=self.settings.port,
            handshake_timeout_s=self.settings.handshake_timeout_ms / 1000,
            rules=self.rules,
            allowed_origins=self.settings.allowed_origins,
            tls=self.tls,
        )


def rules_of(settings: WorkerManagerSettings, engine_token: str | None = None) -> Rules:
    """What a worker port asks of those who connect."""
    rbac, middleware = settings.rbac, settings.middleware_function_id
    token = settings.token
    if token is None and (rbac is None or rbac.auth_function_id is None):
        token = engine_token
    if rbac is None:
        return Rules(token=token, middleware_function_id=middleware)
    return Rules(
        token=token,
        auth_function_id=rbac.auth_function_id,
        expose=tuple(map(_filter, rbac.expose_functions)),
        hooks=_hooks(rbac),
        middleware_function_id=middleware,
    )


def _hooks(rbac: RbacSettings) -> Hooks:
    return Hooks(
        function=rbac.on_function_registration_function_id,
        trigger=rbac.on_trigger_registration_function_id,
        trigger_type=rbac.on_trigger_type_registration_function_id,
    )


def _filter(expose: ExposeSettings) -> ExposeFilter:
    return ExposeFilter(
        pattern=None if expose.match is None else Pattern.of(expose.match),
        metadata=None if expose.metadata is None else as_value(expose.metadata),
        namespace=expose.namespace,
    )


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """TLS 1.2 or newer with this certificate and key. Raises `ConfigError` saying which file cannot be used, and why."""
    for key, name in (("tls.certificate", settings.certificate), ("tls.key", settings.key)):
        try:
            Path(name).open("rb").close()
        except OSError as error:
            raise _refused(key, f"cannot read '{name}': {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    asked = False

    def no_password() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(settings.certificate, settings.key, no_password)
    except ssl.SSLError as error:
        if asked:
            raise _refused("tls.key", f"'{settings.key}' {ENCRYPTED}") from None
        raise _unusable(settings, error) from None
    return context


def _unusable(settings: TlsSettings, error: ssl.SSLError) -> ConfigError:
    if error.reason == "KEY_VALUES_MISMATCH":
        text = f"'{settings.key}' is not the key of the certificate '{settings.certificate}'"
        return _refused("tls.key", text)
    try:
        ssl.create_default_context(cafile=settings.certificate)
    except ssl.SSLError:
        return _refused("tls.certificate", f"'{settings.certificate}' holds no certificate in PEM form")
    return _refused("tls.key", f"'{settings.key}' holds no private key in PEM form")


def _refused(key: str, text: str) -> ConfigError:
    return ConfigError("", [Problem(text, key)])
