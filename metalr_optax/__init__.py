"""Learning rates that an optimizer learns online, saves and transfers."""

__version__ = "0.5.1"

from metalr_optax.adapt import adapt_memory as adapt_memory
from metalr_optax.adapt import match_labels as match_labels
from metalr_optax.averaging import average_weights as average_weights
from metalr_optax.averaging import averaged_weights as averaged_weights
from metalr_optax.files import load_memory as load_memory
from metalr_optax.files import load_metadata as load_metadata
from metalr_optax.files import save_memory as save_memory
from metalr_optax.kernels import linspace_kernels as linspace_kernels
from metalr_optax.kernels import logspace_kernels as logspace_kernels
from metalr_optax.learner import ScaleByMemoryState as ScaleByMemoryState
from metalr_optax.memory import Kernels as Kernels
from metalr_optax.memory import Memory as Memory
from metalr_optax.paper import paper_adam as paper_adam
from metalr_optax.paper import paper_sgd as paper_sgd
from metalr_optax.plots import plot_memory as plot_memory
from metalr_optax.plots import plot_memory_history as plot_memory_history
from metalr_optax.plots import plot_rates as plot_rates
from metalr_optax.plots import plot_schedule as plot_schedule
from metalr_optax.plots import plot_transfer as plot_transfer
from metalr_optax.ready import learn_rates as learn_rates
from metalr_optax.ready import memory_adam as memory_adam
from metalr_optax.ready import memory_sgd as memory_sgd
from metalr_optax.rules import AgreementStepsState as AgreementStepsState
from metalr_optax.rules import agreement_steps as agreement_steps
from metalr_optax.signals import clipped_product as clipped_product
from metalr_optax.signals import raw_product as raw_product
from metalr_optax.signals import sign_agreement as sign_agreement
from metalr_optax.summary import get_kernel_inputs as get_kernel_inputs
from metalr_optax.summary import get_layer_rates as get_layer_rates
from metalr_optax.summary import get_rates as get_rates
from metalr_optax.summary import summarize_memory as summarize_memory
from metalr_optax.transfer import get_memory as get_memory
from metalr_optax.transfer import set_memory as set_memory
from metalr_optax.transform import scale_by_memory as scale_by_memory
