import jax

# Users may forbid implicit broadcasting; so the whole suite runs without it.
jax.config.update("jax_numpy_rank_promotion", "raise")
