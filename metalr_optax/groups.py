"""Which tensors share a memory, and what it is called."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalr_optax.checks import name_of, require

GroupBy = str | Callable[[tuple[Any, ...], Any], str]
Stacked = Callable[[tuple[Any, ...], Any], bool]


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
    return [name_of(path) or "params" for path in paths]


def stacks_of(tree: Any, stacked: Stacked | None) -> list[int | None]:
    """Return how many layers are stacked in each leaf, or None for a single one.

    Raises:
      ValueError: a leaf without an axis to be stacked along.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if stacked is None:
        return [None] * len(leaves)
    paths = _without_wrappers([path for path, _ in leaves])
    stacks: list[int | None] = []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        is_stacked = bool(stacked(path, leaf))
        allowed = "choose tensors with a first axis, that of the layers"
        fits = not is_stacked or jnp.ndim(leaf) > 0
        require(fits, "stacked", allowed, f"a number at {name_of(path)}")
        stacks.append(jnp.shape(leaf)[0] if is_stacked else None)
    return stacks


def stack_by_label(
    labels: list[str], stacks: list[int | None]
) -> dict[str, int | None]:
    """Return how many layers are stacked under each label, in the order of labels.

    Raises:
      ValueError: leaves of one label that do not agree.
    """
    found = dict(zip(labels, stacks, strict=True))
    for label, stack in zip(labels, stacks, strict=True):
        allowed = f"say the same of all tensors of {label!r}, layers of one number"
        require(stack == found[label], "stacked", allowed, (stack, found[label]))
    return {label: found[label] for label in sorted(found)}


def names_of(stacks: dict[str, int | None]) -> list[str]:
    """Return the name of every memory: a label, with the number of a layer in it."""
    return [
        name
        for label, stack in stacks.items()
        for name in (
            [label] if stack is None else [f"{label}/{i}" for i in range(stack)]
        )
    ]


def by_layer(function: Callable[..., Any], stack: int | None) -> Callable[..., Any]:
    """Return a function of a tensor that treats each of the layers in it alone."""
    return function if stack is None else jax.vmap(function)


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
                f"{found} at {name_of(path) or 'the top'}; leave others out with "
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
