"""Which tensors share a memory, and what it is called."""

import collections
from collections.abc import Callable
from typing import Any

import jax

GroupBy = str | Callable[[tuple[Any, ...], Any], str]


def labels_of(tree: Any, group_by: GroupBy) -> list[str]:
    """Return the label of the memory of each leaf, in the order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = _without_wrappers([path for path, _ in leaves])
    if callable(group_by):
        labels = [
            group_by(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)
        ]
        for label in labels:
            if not isinstance(label, str):
                raise ValueError(
                    f"group_by must return labels of type str, got {label!r}"
                )
        return labels
    if group_by == "all":
        return ["all"] * len(leaves)
    if group_by == "layer":
        paths = [path[:-1] or path for path in paths]
    return [join(path) or "params" for path in paths]


def _without_wrappers(paths: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Drop the attribute `value` in which Flax wraps an array, always on its own."""
    siblings = collections.Counter(path[:-1] for path in paths)
    wrapper = jax.tree_util.GetAttrKey("value")
    return [
        path[:-1]
        if len(path) > 1 and path[-1] == wrapper and siblings[path[:-1]] == 1
        else path
        for path in paths
    ]


def join(path: tuple[Any, ...]) -> str:
    """Return the keys of a path, joined with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
