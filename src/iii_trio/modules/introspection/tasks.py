"""The live tree of Trio tasks, as `engine::tree` shows it: who works for whom, by name."""

from typing import Any, Final

import trio

from ...protocol.limits import MAX_DEPTH

MAX_LEVELS: Final = MAX_DEPTH // 2 - 4
"""Levels that are shown. Each takes two levels of JSON, and deeper JSON would not reach its reader."""


def task_tree() -> dict[str, Any]:
    """The tree from Trio's root task down, as nested `{"name": str, "children": […]}`.

    The children of a task stand directly under it; a task with several open nurseries has a node for each of them,
    outermost first. What lies deeper than `MAX_LEVELS` is cut, with a node that counts it. Must be called on the Trio
    thread.
    """
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return _node(root, 1)


def _node(task: trio.lowlevel.Task, level: int) -> dict[str, Any]:
    nurseries = [sorted(nursery.child_tasks, key=lambda child: child.name) for nursery in task.child_nurseries]
    if len(nurseries) == 1:
        return _shown(task.name, nurseries[0], level)
    children = [
        _shown(f"nursery {number}", tasks, level + 1) for number, tasks in enumerate(nurseries, start=1) if tasks
    ]
    return {"name": task.name, "children": children}


def _shown(name: str, tasks: list[trio.lowlevel.Task], level: int) -> dict[str, Any]:
    if level >= MAX_LEVELS and tasks:
        return {"name": name, "children": [{"name": f"… {len(tasks)} more, too deep to show", "children": []}]}
    return {"name": name, "children": [_node(task, level + 1) for task in tasks]}
