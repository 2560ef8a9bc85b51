"""Which tensors share a memory, and its label."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.checks import name_of, require

# Of a tensor: the label of its memory, or a label for each slice of its first axis.
Label = str | Sequence[str]
GroupBy = str | Callable[[tuple[Any, ...], Any], Label]


def labels_of(tree: Any, group_by: GroupBy) -> list[Label]:
    """Return the label of each leaf, in the order of the leaves.

    Raises:
      ValueError: a label that is no string, a list that does not fit a first axis.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = _without_wrappers([path for path, _ in leaves])
    if callable(group_by):
        pairs = zip(paths, (leaf for _, leaf in leaves), strict=True)
        return [_checked(group_by(path, leaf), path, leaf) for path, leaf in pairs]
    if group_by == "all":
        return ["all"] * len(leaves)
    if group_by == "layer":
        paths = [path[:-1] or path for path in paths]
    return [name_of(path) or "params" for path in paths]


def unique(labels: Sequence[Label]) -> list[str]:
    """Return the names of all memories, in the order of their rows."""
    return sorted({name for label in labels for name in names_in(label)})


def names_in(label: Label) -> Sequence[str]:
    """Return the names in a label."""
    return [label] if isinstance(label, str) else label


def fan_ins(tree: Any, labels: Sequence[Label]) -> np.ndarray:
    """Return the inputs of each unit of the layer of a memory, [L] in order of rows.

    They are the size of its weights over that of its bias, in whichever order
    frameworks keep the axes; 0 where a memory is not of such a pair.
    """
    return np.array([_fan_in(shapes) for shapes in _shapes(tree, labels)], np.float64)


def inputs_of(tree: Any, labels: Sequence[Label], fan_in: np.ndarray) -> np.ndarray:
    """Return about how many inputs the units of each memory have, [L].

    Where ``fan_in``, of :func:`fan_ins`, is 0, they are the root of the number of
    weights of the largest matrix, as in a square one; 0 where there is none.
    """
    guesses = [
        max((math.prod(shape) ** 0.5 for shape in shapes if len(shape) > 1), default=0)
        for shapes in _shapes(tree, labels)
    ]
    return np.where(fan_in > 0, fan_in, guesses)


def memory_dtype(params: Any) -> Any:
    """Return the dtype of all memories: float32, or wider with the widest leaf.

    Raises:
      ValueError: a leaf that is not a real floating point array, or has no values.
    """
    dtype = jnp.dtype(jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # The ceilings of rates depend on the values of the parameters.
        fits = not isinstance(leaf, jax.ShapeDtypeStruct)
        hint = "jax.eval_shape(optimizer.init, params) returns a state of shapes"
        require(fits, "params", "have values, not only shapes", leaf, hint)
        try:
            found = jnp.result_type(leaf)
        except TypeError:
            found = None  # such as a function
        if found is None or not jnp.issubdtype(found, jnp.floating):
            what = type(leaf).__name__ if found is None else found
            raise ValueError(
                "params must be real floating point arrays, got "
                f"{what} at {name_of(path) or 'the top'}; leave others out with "
                "optax.masked (in Equinox, eqx.filter(model, eqx.is_inexact_array)), "
                "split complex ones with optax.contrib.split_real_and_imaginary"
            )
        if jnp.finfo(found).bits > jnp.finfo(dtype).bits:
            dtype = found
    return dtype


def _shapes(tree: Any, labels: Sequence[Label]) -> list[list[tuple[int, ...]]]:
    """Return the shapes of the tensors, or slices, of each memory."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in unique(labels)}
    for leaf, label in zip(jax.tree.leaves(tree), labels, strict=True):
        own = leaf.shape if isinstance(label, str) else leaf.shape[1:]
        for name in names_in(label):
            shapes[name].append(own)
    return list(shapes.values())


def _fan_in(shapes: Sequence[tuple[int, ...]]) -> float:
    """Return the fan-in of two tensors that are weights and a bias, or 0."""
    if len(shapes) != 2:
        return 0
    bias, weights = sorted(shapes, key=len)
    units = math.prod(bias) if 0 < len(bias) < len(weights) else 0
    return math.prod(weights) / units if units else 0


def _checked(label: Any, path: tuple[Any, ...], leaf: Any) -> Label:
    """Return the label of a leaf, or its list of labels, if it is valid."""
    is_list = isinstance(label, list | tuple)
    texts = label if is_list else [label]
    fits = all(isinstance(text, str) for text in texts)
    require(fits, "group_by", "return a label of type str, or a list of them", label)
    shape = jnp.shape(leaf)
    fits = not is_list or (shape and shape[0] == len(label))
    allowed = f"return a label per slice of the first axis of {name_of(path)}, {shape}"
    require(fits, "group_by", allowed, label)
    return label


def _without_wrappers(paths: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Drop the last keys of paths where a node only wraps a single array.

    Arrays with named axes are in a node without names, Flax's arrays in an attribute
    `value`; the first may be inside the second.
    """
    nodes = (path[:depth] for path in paths for depth in range(len(path)))
    leaves_in = collections.Counter(nodes)
    keys = jax.tree_util
    for wrapper in (keys.FlattenedIndexKey(0), keys.GetAttrKey("value")):
        paths = [
            path[:-1]
            if len(path) > 1 and path[-1] == wrapper and leaves_in[path[:-1]] == 1
            else path
            for path in paths
        ]
    return paths
