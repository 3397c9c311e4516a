"""The public coroutines of a package, so that promise P8 leaves none of them out."""

import importlib
import inspect
import pkgutil
from types import ModuleType


def public_coroutines(package: ModuleType) -> set[str]:
    """`module.function` and `module.Class.method` for every public coroutine and async context manager of a package."""
    found: set[str] = set()
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, item in vars(module).items():
            if name.startswith("_") or getattr(item, "__module__", None) != module.__name__:
                continue
            methods = {f"{name}.{key}": value for key, value in vars(item).items()} if inspect.isclass(item) else {}
            for path, value in {name: item, **methods}.items():
                inner = inspect.unwrap(value) if callable(value) else value
                if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
                    if not path.rpartition(".")[2].startswith("_"):
                        found.add(f"{info.name}.{path}")
    return found
