from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalr_optax import Kernels, linspace_kernels, logspace_kernels
from metalr_optax.kernels import covered
from metalr_optax.memory_checks import check_kernels

BOUNDS = st.floats(1e-3, 1e3)


@given(bound=BOUNDS, num=st.integers(2, 200), width=st.floats(0.1, 3.0))
def test_linspace_kernels_are_even_and_reach_the_bound(bound, num, width):
    centers, widths = linspace_kernels(bound, num, width)
    spacing = 2 * bound / (num - 1)
    np.testing.assert_allclose(np.diff(centers), spacing, rtol=1e-9)
    assert centers[0] == -bound
    assert centers[-1] == bound
    np.testing.assert_allclose(widths, width * spacing)
    check_kernels(Kernels(centers, widths))


@given(bound=BOUNDS, half=st.integers(2, 50), width=st.floats(0.1, 3.0))
def test_logspace_kernels_are_geometric_and_mirrored(bound, half, width):
    centers, widths = logspace_kernels(bound, 2 * half, width=width)
    assert len(centers) == 2 * half + 1
    np.testing.assert_array_equal(centers, -centers[::-1])
    np.testing.assert_array_equal(widths, widths[::-1])
    magnitudes = centers[half + 1 :]
    assert centers[half] == 0.0
    np.testing.assert_allclose(magnitudes[[0, -1]], [1e-6, bound])
    ratios = magnitudes[1:] / magnitudes[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    np.testing.assert_allclose(widths[half + 1 :], width * np.diff(centers[half:]))
    assert widths[half] == widths[half + 1]
    check_kernels(Kernels(centers, widths))


def test_one_kernel_is_one_scalar_rate():
    centers, widths = linspace_kernels(2.0, num=1, width=0.1)
    assert centers.tolist() == [0.0]
    assert widths.tolist() == [2000.0]


@pytest.mark.parametrize(
    "kernels",
    [
        linspace_kernels(3.0, 7),
        linspace_kernels(3.0, 1),
        linspace_kernels(3.0, 2),
        logspace_kernels(3.0, 6),
    ],
)
def test_grid_bound_is_the_bound_that_built_the_kernels(kernels):
    np.testing.assert_allclose(covered(kernels), 3.0, rtol=1e-6)


def test_kernels_are_float64_numpy_until_an_optimizer_is_initialised():
    for kernels in (linspace_kernels(2.0), logspace_kernels(2.0)):
        for array in kernels:
            assert isinstance(array, np.ndarray)
            assert array.dtype == np.float64


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: linspace_kernels(0.0),
            "bound must be a number in .0, inf., got 0.0",
        ),
        (lambda: linspace_kernels(np.inf), "bound must be .* got inf"),
        (lambda: linspace_kernels(np.nan), "bound must be .* got nan"),
        (lambda: linspace_kernels(cast(Any, "2")), "bound must be .* got '2'"),
        (lambda: linspace_kernels(cast(Any, None)), "bound must be .* got None"),
        (
            lambda: linspace_kernels(2.0, 0),
            "num must be an integer of at least 1, got 0",
        ),
        (
            lambda: linspace_kernels(2.0, cast(Any, 2.5)),
            "num must be an integer of at least 1, got 2.5",
        ),
        (
            lambda: linspace_kernels(2.0, True),
            "num must be an integer of at least 1, got True",
        ),
        (lambda: linspace_kernels(2.0, 5, -1.0), "width must be .* got -1.0"),
        (lambda: logspace_kernels(-1.0, 4), "bound must be .* got -1.0"),
        (lambda: logspace_kernels(1.0, 5), "num must be even .* got 5"),
        (
            lambda: logspace_kernels(1.0, 2),
            "num must be an integer of at least 4, got 2",
        ),
        (lambda: logspace_kernels(1.0, 4, 2.0), "smallest must be below .* got 2.0"),
        (lambda: logspace_kernels(1.0, 4, 0.0), "smallest must be .* got 0.0"),
        (lambda: logspace_kernels(1.0, 4, width=0), "width must be .* got 0"),
    ],
)
def test_bad_arguments_name_themselves(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("centers", "widths", "match"),
    [
        ([], [], "M >= 1"),
        ([0.0, 1.0], [1.0], r"widths within .* of shape \(2,\)"),
        ([[0.0]], [[1.0]], r"shape \[M\]"),
        ([0.0, 1.0], [1.0, 0.0], r"widths within \[2\."),
        ([0.0, 1.0], [1.0, np.nan], r"widths within \[2\."),
        ([1.0, 0.0], [1.0, 1.0], "centers that increase"),
        ([0.0, np.inf], [1.0, 1.0], "centers within"),
        ([0.0, 1.0], [1e-20, 1e-20], "by at most 1e.15 widths"),
    ],
)
def test_unusable_kernels_are_refused(centers, widths, match):
    with pytest.raises(ValueError, match=match):
        check_kernels(Kernels(np.array(centers), np.array(widths)))


def test_kernels_of_another_type_are_refused():
    arrays: Any = jnp.zeros(3), jnp.ones(3)
    with pytest.raises(ValueError, match=r"kernels must be metalr_optax\.Kernels"):
        check_kernels(arrays)
