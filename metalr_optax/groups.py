"""Which tensors share a memory, and what it is called."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalr_optax.checks import require

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
            is_text = isinstance(label, str)
            require(is_text, "group_by", "return labels of type str", label)
        return labels
    if group_by == "all":
        return ["all"] * len(leaves)
    if group_by == "layer":
        paths = [path[:-1] or path for path in paths]
    return [_join(path) or "params" for path in paths]


def memory_dtype(params: Any) -> Any:
    """Return the dtype of all memories: float32, or wider with the widest leaf.

    Raises:
      ValueError: a leaf that is not a real floating point array.
    """
    dtype = jnp.dtype(jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        try:
            one = jnp.result_type(leaf)
        except TypeError:
            one = None  # such as a function
        if one is None or not jnp.issubdtype(one, jnp.floating):
            found = repr(leaf) if one is None else one
            raise ValueError(
                "params must be real floating point arrays, got "
                f"{found} at {_join(path) or 'the top'}; leave others out with "
                "optax.masked (in Equinox, eqx.filter(model, eqx.is_inexact_array)), "
                "split complex ones with optax.contrib.split_real_and_imaginary"
            )
        if jnp.finfo(one).bits > jnp.finfo(dtype).bits:
            dtype = one
    return dtype


def not_params(tree: Any) -> Any:
    """Return a tree for a state that `optax.tree.map_params` takes for one field.

    That function initialises an optimizer with a tree without leaves and takes what
    comes out for a prefix of the state: an array is a prefix of anything.
    """
    return tree if jax.tree.leaves(tree) else jnp.zeros(0, jnp.int32)


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


def _join(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
