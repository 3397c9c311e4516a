"""What holds for every test: Ctrl-C means what it does in a terminal, also where the run itself was begun in the background."""

import signal


def pytest_configure() -> None:
    """A shell lets its background jobs ignore SIGINT, and the processes under test would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
