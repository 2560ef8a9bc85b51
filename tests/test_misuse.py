"""What is passed by mistake: an error says what came, and which call is right."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from matplotlib.figure import Figure

import metalr_optax
from metalr_optax import (
    Memory,
    average_weights,
    get_memory,
    linspace_kernels,
    memory_adam,
    sign_agreement,
    summarize_memory,
)

PARAMS = {"dense": {"w": jnp.ones((200, 300)), "b": jnp.zeros(300)}}
OPTIMIZER = memory_adam()
STATE = OPTIMIZER.init(PARAMS)
MEMORY = get_memory(STATE)
# What a user may have in hand, and how an error calls it.
OBJECTS: dict[str, tuple[Any, str]] = {
    "number": (0.01, r"0\.01"),
    "text": ("dense", "'dense'"),
    "array": (PARAMS["dense"]["w"], r"float32 and shape \(200, 300\)"),
    "params": (PARAMS, r"\{'(dense': \{\.\.\.|b': an array)"),
    "shapes": (jax.eval_shape(lambda: PARAMS), r"\{'(dense': \{\.\.\.|b': an array)"),
    "optimizer": (OPTIMIZER, "GradientTransformationExtraArgs"),
    "state": (STATE, "GuardState"),
    "memories": (MEMORY, "Memory"),
    "memory": (MEMORY["dense"], "Memory"),
    "kernels": (linspace_kernels(2.0, 5), r"Kernels|shape \(2, 5\)"),
    "function": (sign_agreement, "function sign_agreement"),
    "class": (Memory, "type Memory"),
    "average": (average_weights().init(PARAMS), "AverageWeightsState"),
    "logs": (summarize_memory(STATE), "fraction/dense|0.5"),
}
# Arguments that take any value, or that Optax and matplotlib look at.
FREE = {"nesterov", "mu_dtype", "accumulator_dtype", "colorbar"}
# What an argument is meant for; the others are meant for none of the objects.
MEANT = {
    "number": "kernel_inputs power bound width smallest step gain b1 b2 eps eps_root "
    "momentum learning_rate weight_decay clip_norm largest_step initial",
    "text": "path",
    "params": "params direction",
    "optimizer": "base_optimizer memory_optimizer",
    "state": "opt_state",
    "memories": "memory initial rates memories",
    "memory": "initial before after rates memories",
    "kernels": "kernels kernel_inputs",
    "array": "kernel_inputs",
    "function": "signal group_by learning_rate mask",
    "class": "signal group_by learning_rate mask",
    "average": "state",
}
# Arguments for objects, which come from a call.
FROM_A_CALL = {"opt_state", "state", "kernels", "base_optimizer", "memory_optimizer"}
FROM_A_CALL |= {"memory", "memories", "before", "after", "initial", "rates", "path"}
VALID: dict[str, dict[str, Any]] = {
    "adapt_memory": {"memory": MEMORY, "opt_state": STATE},
    "match_labels": {"memory": MEMORY, "opt_state": STATE},
    "averaged_weights": {"state": OBJECTS["average"][0], "params": PARAMS},
    "load_memory": {},
    "load_metadata": {},
    "save_memory": {"path": "/nowhere/memory", "memory": MEMORY},
    "linspace_kernels": {"bound": 1.0, "num": 3},
    "logspace_kernels": {"bound": 1.0},
    "learn_rates": {"base_optimizer": optax.sgd(1.0)},
    "plot_memory": {"memory": MEMORY},
    "plot_memory_history": {"memories": {0: MEMORY["dense"]}},
    "plot_rates": {"rates": {"dense": [0.1, 0.2]}},
    "plot_schedule": {"memories": MEMORY},
    "plot_transfer": {"before": MEMORY["dense"], "after": MEMORY["dense"]},
    "get_kernel_inputs": {"opt_state": STATE, "direction": PARAMS},
    "get_rates": {"opt_state": STATE, "direction": PARAMS},
    "get_layer_rates": {"opt_state": STATE},
    "summarize_memory": {"opt_state": STATE},
    "get_memory": {"opt_state": STATE},
    "set_memory": {"opt_state": STATE, "memory": MEMORY},
    **{name: {} for name in ("memory_adam", "memory_sgd", "paper_adam", "paper_sgd")},
    **{name: {} for name in ("average_weights", "agreement_steps", "scale_by_memory")},
}


def is_meant(name, argument, kind):
    """Whether a function takes such an object, or leaves it to who uses it."""
    value = OBJECTS[kind][0]
    if argument in FREE or argument in MEANT.get(kind, "").split():
        return True
    if name == "match_labels" and argument == "memory":
        return isinstance(value, dict)  # It only looks at labels.
    if name == "plot_memory" and argument == "memory":
        return kind == "memory"
    if argument == "direction" and kind == "shapes":
        return True  # JAX says it.
    if name == "averaged_weights" and argument == "params":
        return kind == "shapes"
    # Signals and labels of a user's own may be anything that can be called.
    return name in ("get_rates", "get_kernel_inputs") and callable(value)


def test_every_public_function_is_called():
    signals = {"clipped_product", "raw_product", "sign_agreement"}
    public = {
        name
        for name in dir(metalr_optax)
        if inspect.isfunction(getattr(metalr_optax, name))
    }
    assert set(VALID) == public - signals


@pytest.mark.parametrize("name", VALID)
def test_an_error_says_what_came_and_which_call_is_right(name):
    function = getattr(metalr_optax, name)
    for argument in inspect.signature(function).parameters:
        for kind, (value, described) in OBJECTS.items():
            if is_meant(name, argument, kind):
                continue
            arguments = VALID[name] | {argument: value}
            if name.startswith("plot"):
                arguments = {"ax": Figure().subplots()} | arguments
            with pytest.raises(ValueError, match=rf"\b{argument}\b") as raised:
                function(**arguments)
            text = f"{name}({argument}={kind}): {raised.value}"
            assert len(str(raised.value)) <= 400, text
            assert re.search(rf"(got|unknown) .*({described})", str(raised.value)), text
            assert "Array(" not in text, text
            if argument in FROM_A_CALL:
                assert re.search(r"\w\(.*\)", str(raised.value)), text
