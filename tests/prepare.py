"""Install what the compatibility tests run besides this package: other releases of the official SDKs.

`python tests/prepare.py`, once before `pytest`; later runs find everything in place and end at once. Each release gets
a directory of its own under `.compat/`, so that none meets another or the tests' own environment:

    .compat/python/VERSION   a virtual environment with an official Python SDK
    .compat/node/VERSION     node_modules with an official Node SDK

Besides, Chromium, for the tests with pages: whatever the system has, or, in CI, what its package manager installs.

What is in the directories is pinned: by `tests/compat/clients/python-VERSION.txt`, and by the lock files of `examples/hello_node`
and `tests/compat/clients/node-VERSION`.
Needs Python with venv and pip, and node with npm; nothing else. Without node its part is left out and its tests are
skipped; with CI set, that is a failure.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPAT = ROOT / ".compat"
CLIENTS = ROOT / "tests" / "compat" / "clients"
NODE_PROJECTS = (ROOT / "examples" / "hello_node", *sorted(CLIENTS.glob("node-*")))

INSTALL_S = 600
"""Longest time that one installation may take."""


class Failed(Exception):
    """An installation that did not work; the message says which and why."""


def digest(*parts: str | Path) -> str:
    """What an installation depends on, as one value: texts, and the contents of files."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


def run(*command: str | Path, cwd: Path) -> str:
    """Run one command; what it prints, which is shown when it fails. Raises `Failed`."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"`{' '.join(words)}` has not ended after {INSTALL_S} s") from None
    except OSError as error:
        raise Failed(f"`{' '.join(words)}` does not start: {error}") from None
    output = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise Failed(f"`{' '.join(words)}` ended with status {done.returncode}:\n{output}")
    return output


def keep(directory: Path, stamp: str, install: Callable[[Path], None]) -> None:
    """Have `install` fill `directory`, unless it has been filled for the same `stamp`. Raises `Failed`.

    The stamp is written last: what an interrupted run left behind is thrown away by the next.
    """
    name = directory.relative_to(ROOT)
    mark = directory / "prepared"
    if mark.exists() and mark.read_text() == stamp:
        print(f"{name}: in place")
        return
    print(f"{name}: installing", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    install(directory)
    mark.write_text(stamp)


def prepare_python(requirements: Path) -> None:
    """A virtual environment with one official Python release."""

    def install(directory: Path) -> None:
        try:
            venv.create(directory, with_pip=True, symlinks=os.name != "nt")
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"no virtual environment can be made in {directory} (is venv installed?): {error}") from error
        pip = (directory / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "--only-binary", ":all:", "-r", requirements, cwd=directory)

    version = requirements.stem.removeprefix("python-")
    directory = COMPAT / "python" / version
    keep(directory, digest(sys.version, sys.base_prefix, str(directory), requirements), install)


def prepare_node(project: Path) -> None:
    """node_modules of one project, exactly as its lock file says. Raises `Failed`."""
    manifest, lock = project / "package.json", project / "package-lock.json"
    version = json.loads(manifest.read_text())["dependencies"]["iii-sdk"]
    directory = COMPAT / "node" / version
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        text = f"{directory.relative_to(ROOT)}: {' and '.join(missing)} not found"
        if os.environ.get("CI"):
            raise Failed(f"{text}; CI must run the tests with the official Node SDK")
        print(f"{text}; the tests with the official Node SDK will be skipped")
        return

    def install(directory: Path) -> None:
        for file in (manifest, lock):
            shutil.copy(file, directory)
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=directory)

    keep(directory, digest(run("node", "--version", cwd=ROOT), manifest, lock), install)


def prepare_chromium() -> None:
    """A Chromium on the path. Only CI's machine is changed for it; elsewhere its tests are skipped. Raises `Failed`."""
    if any(shutil.which(name) for name in ("chromium", "chromium-browser")):
        print("chromium: in place")
    elif not os.environ.get("CI"):
        print("chromium: not found; the tests with pages will be skipped")
    else:
        print("chromium: installing", flush=True)
        run("apt-get", "update", "--quiet", cwd=ROOT)
        run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium", cwd=ROOT)


def main() -> int:
    """Prepare everything; 1 if something failed, which does not keep the rest from being prepared."""
    COMPAT.mkdir(exist_ok=True)
    (COMPAT / ".gitignore").write_text("*\n")
    failures = 0
    pythons = [partial(prepare_python, file) for file in sorted(CLIENTS.glob("python-*.txt"))]
    nodes = [partial(prepare_node, project) for project in NODE_PROJECTS]
    for step in (*pythons, *nodes, prepare_chromium):
        try:
            step()
        except Failed as failure:
            print(f"Error: {failure}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
