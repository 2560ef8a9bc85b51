"""What we make of the rows, in words: the only text that is typed by hand."""

INTRODUCTION = """# A default that needs no tuning, and the paper's experiments

Made by `python -m benchmarks report` from the raw rows in `results/`; nothing on this
page is typed by hand but what explains it. First come the library's defaults:
[nothing tuned, on eleven tasks](#one-default-nothing-tuned), memories that move to
larger networks, and [what a step costs](#what-a-step-costs); then the paper's rule on
[the paper's experiments](#answers). Every experiment is one command. It prints
the tables below for a small setting (3 seeds, 5 trials, eight methods); with `--full`
for the published one (10 seeds, 20 trials, all methods; half an hour on 2 cores). A
command that is stopped goes on where it was. Rows of an older version of the code are
not told apart: begin in an empty folder then.

**How methods are compared.** Targets were fixed and committed before a memory was
run: the paper's threshold where it has one, else what the best of tuned SGD, momentum
and Adam reaches at three quarters of the horizon, the median over seeds
([targets.csv](targets.csv), redone by `python -m benchmarks targets`). Three classes
are kept apart: *one fixed setting*, the same everywhere; *tuned* by 1, 5 or 20
trials; *transferred*, with a memory that another task left. All methods share one
sampler (Halton's sequence, log-uniform over the printed ranges of four decades or
more; the meta rate is a dimension like the rate). A trial is one run, with a seed
that no comparison uses; the best one does not diverge, has the fewest updates to the
target, then the lowest end. With one run a trial, more trials can choose worse. All
other runs are paired: one seed is the same network and the same batches for every
method. A run that does not reach the target is counted as never, and shown. The end
is the median of the last five measures. Tests are sign tests over paired seeds,
two-sided; "no clear difference" is p >= .05, and many tests are made on this page, so
up to one in twenty of those without any effect shows one.

**The paper's rule**: `paper_sgd` and `paper_adam` are that rule on SGD and on
directions of Adam, clip 2, rates of at most 1, a memory for every layer, stepped by
Adam at the meta rate. **Controls**: M=1 has one rate for a layer and no landscape.
On the last task, with a memory from the related one: not learning on; the mean rate of
each layer, which counts local models that no gradient visited; the same rates shuffled
within each layer; and a memory from an unrelated task. **Peers**: from Optax Prodigy,
DoWG, Mechanic, schedule-free AdamW; RPROP is our own, because `optax.rprop` (0.2.8)
emits the update of the step before; hypergradient descent (Baydin 2018) is Adam's.
"""

SUITE_FOUND = """**How the rule was chosen.** Steps, signals and brakes were tried on
teacher, noisy teacher, classes and mnist online. The last numbers (step .5, maximum
over a hundred updates, clip of the norm at 1) were chosen with at most five seeds on
all tasks but rnn change, the only one here that confirms rather than was chosen on.
M=21 was to be the default of `memory_sgd`; M=1 was chosen after these tables were seen.

**Misses.** `memory_adam` is level with tuned Adam on most tasks from .001 and .01, not
from 1e-5 and 1e-4, where the climb takes too much of these short runs. It needs more
than 1.5 times as many updates on rosenbrock and unequal inputs from everywhere, on the
language model from three starts of four (it ends within 2 % of the target, from .01 7 %
above: it does not recover from its first steps), on rnn change from .001 and .01 (tuned
Adam itself misses 4 of 10) and on gan from 1e-5. A start at .1 is refused. `memory_sgd`
settles within 5 % of tuned SGD but on rosenbrock, where it does not go down the valley
and half of its runs end above ten times the end of tuned SGD (which does not reach the
target either), on gan and, by little, on rnn change from 1e-5. Of the peers Prodigy is
the strongest: with its defaults it reaches unequal inputs and the language model, which
`memory_adam` misses from .001, and misses rosenbrock, rnn change and gan, which
`memory_adam` reaches; it carries twice Adam's state. No run of a default of ours
diverged. BEGAN, the LSTM and the language model are chaotic: another rounding moves
single cells by as much as .5.

**M > 1.** Inputs of unequal scale are the class of tasks where a landscape wins with
SGD: its end is half of that of one rate per layer, 10 seeds to 0; on the language model
it is 4 % lower, 10 to 0. Elsewhere it makes no clear difference or loses, and one
sample at a time it diverges. So the default is M=1, and M=21 is one argument away. On
directions of Adam no class of tasks was found: M=21 wins on the quadratic and loses on
classes, online and rosenbrock.

**Tried and failed** (on the first four tasks, not kept as options): the paper's
additive steps (they do not settle), RPROP on the logarithm of rates, steps by the
ratio of signal and noise, sign agreement (noise wins at batch 1), agreement without a
brake (rates run away near a minimum), a brake only upward, its square root, one from
a running mean or with a floor (networks die online), one rate for all layers or a part
of the drive shared between them, a ramp of the first steps (the memory climbs during
it), a bias towards larger rates (worse with noise), faster steps down, clipping by
coordinate instead of by norm, and the trace of agreement as a kernel input."""

TRANSFER_FOUND = """**What it says.** With SGD an early memory saves a quarter of the
updates of the larger dense network (9 seeds to 1), and brings the larger convolutional
one to the target in eight runs of ten, a fresh memory in two (7 to 1, p = .07). With
Adam nothing is gained: a fresh memory has climbed before it matters. One number does as
well as a rate for every layer (*pooled*), so what moves between these networks is the
height of the rates, not their shape. A memory from the end of a task is
no start for another model: its rates have come down, most in the last layers, and with
Adam it is clearly slower than a fresh one."""

MNIST_FOUND = """\
What holds: a reloaded memory makes the third task about as fast as the paper says at
meta rates of 0.01 and 0.001, from a base rate at which SGD never gets there. What does
not:

- at 0.1 a reloaded memory spoils 4 of 10 runs (the paper reports 3.2 updates). Such
  runs are chaotic: another version of JAX, and so another rounding, moves them by a few
  updates;
- Adam at 0.001 needs 3.2 updates here, not 14.4: it is level with a reloaded memory and
  twice as fast as a new one;
- at 0.01 and 0.001 one local model per layer (`M=1`) does as well as twenty, and at
  0.01 so does the mean rate of each layer (`constant`). On this experiment the gain is
  the right rate for each layer, not the landscape over gradient values.

All of MNIST instead of the bundled subset: `--data-dir`; one image at a time, as the
paper's text has it: `--batch-size 1`.
"""

ANSWERS_FOUND = """\
What holds:

- from one fixed setting a memory can beat an untuned Adam by far: on the robot's change
  of speed `paper_sgd` needs .35 of Adam's updates (the paper's figure, for its own form
  of that task, is .37), on the robot's next state `paper_adam` .21, as many as an Adam
  that was tuned in 20 trials;
- with one number per layer (M=1) `paper_adam` fails on the robot's change of speed in 7
  of 10 runs, with twenty in 1; tuned, M=20 also wins at batch 1.

What does not:

- no tuned memory is clearly faster than the best tuned one of SGD, momentum and Adam,
  on any of six problems; on four of twelve it is clearly slower;
- on the paper's own form of the robot task `paper_sgd` is level with an untuned Adam
  (.96), not .37 of it;
- BEGAN: neither memory gets to the target from the fixed setting (the paper: .19 of
  Adam's updates). The rates of `paper_sgd` end at their bound of 1, and SGD wants more
  than 2;
- M=20 is clearly better than M=1 in one of twelve untuned comparisons, otherwise the
  same;
- between tasks a reloaded memory helps where the base rate is far too small (MNIST in
  batches, 6.5 updates to 3.5). `paper_adam` after a reload is slower in every problem
  where it gets there at all: what it learned at the end of one task is too much for the
  start of the next;
- one image at a time the paper's rule is not stable: reloaded memories ruin half of the
  runs.
"""

SPEED = """\
`memory_sgd` and `memory_adam` learn one rate per layer and read it once. Where there
are more local models, the rates of a large tensor are interpolated, so a step costs the
same for 20 as for 500. Whole updates with a donated state, float32, on 2 CPU cores,
timed in turns with `optax.clip_by_global_norm(1.0)` and Adam or momentum, because ours
clip too; medians, with M local models per memory, bytes of state per parameter (at
ten million) and time to trace and compile:
"""

SPEED_FOUND = """\
- `memory_adam` costs what a clip and Adam cost, within 13 %, from a hundred thousand
  parameters in one tensor on, `memory_sgd` 18 % more than a clip and momentum at a
  million and as much from ten million on; small models pay up to 1.7 times as much, a
  hundred tensors of 40,000 numbers 1.4 and 1.5 times. The state is that of the base and
  a row of numbers per memory.
- Tracing and compiling take two times as long as those of a clip and Adam, three to
  four times as long as those of a clip and momentum.
- Evidence comes from a sample of 4,096 coordinates of a tensor of more than 32,768.
  With 65,536 an update of a hundred thousand parameters took 1.6 times as long as a
  clip and Adam, 2.3 to 3.1 times as long as a clip and momentum: to pick a coordinate
  takes the time of five that lie in a row.
- To log every step (`summarize_memory`) costs what it takes to hand out the scalars.
- A landscape (`paper_sgd`, M = 20) costs three times what a clip and momentum cost from
  ten million parameters on, and six times at a million: a CPU adds each coordinate to
  its place on the grid one after the other, on one core.
- With `evidence_sample=` a fixed lattice of each large tensor gives evidence, and of
  a base of one's own only its last direction is kept. The price is a standard error
  of .016 for 4,096 coordinates. Even 256 made no clear difference to learning on ten
  of eleven tasks with `memory_adam` (3 % higher on the other), and 6 % on the
  language model for a landscape with SGD.
- One by one, as the authors' code does it, takes 16 times as long as Adam at a
  million.
- The same command on another processor, or an hour later, gives ratios that differ by
  a quarter: what is compared is only what was timed in turns.
"""
