"""Run an experiment: `python -m benchmarks mnist`."""

import argparse
import pathlib
import sys
import time
from typing import NoReturn

from benchmarks import mnist_report, speed_report
from benchmarks.mnist import TASKS, run_all
from benchmarks.mnist_data import load_digits
from benchmarks.speed import make_cases, run_case


class Parser(argparse.ArgumentParser):
    """A parser that reports what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help tells more)\n")


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def make_parser() -> Parser:
    """Return the parser of all experiments."""
    parser = Parser(
        prog="python -m benchmarks", description=__doc__, allow_abbrev=False
    )
    experiments = parser.add_subparsers(dest="experiment", required=True)
    mnist = experiments.add_parser(
        "mnist",
        help="a CNN learns pairs of digits with a memory that moves on",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    mnist.add_argument(
        "--out", type=pathlib.Path, default="results", help="folder for CSV and PNG"
    )
    mnist.add_argument("--seeds", type=positive, default=10, help="paired runs")
    mnist.add_argument(
        "--horizon", type=positive, default=25, help="updates in each task"
    )
    mnist.add_argument(
        "--batch-size", type=positive, default=64, help="images in an update"
    )
    mnist.add_argument(
        "--data-dir",
        type=pathlib.Path,
        help="folder with the four MNIST files instead of the bundled subset",
    )
    speed = experiments.add_parser(
        "speed",
        help="what an update costs, beside Adam and others",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    speed.add_argument(
        "--out", type=pathlib.Path, default="results", help="folder for CSV and PNG"
    )
    speed.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[10**4, 10**5, 10**6, 10**7, 10**8],
        help="parameters of the model",
    )
    return parser


def mnist(arguments: argparse.Namespace) -> None:
    """Run the MNIST pairs; report every run as it is done, write rows and picture."""
    digits = load_digits(arguments.data_dir)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{len(TASKS)} tasks, {arguments.seeds} seeds, {arguments.horizon} updates of "
        f"{arguments.batch_size} images each; the first runs compile",
        flush=True,
    )
    runs, start = [], time.perf_counter()
    for run in run_all(
        digits, arguments.seeds, arguments.horizon, arguments.batch_size
    ):
        runs.append(run)
        meta_rate = "" if run.meta_rate is None else f"{run.meta_rate:g}"
        print(
            f"[{time.perf_counter() - start:4.0f} s] {run.task}  {run.method:<12}"
            f"{meta_rate:>6}  accuracy at the end {run.accuracies[:, -1].mean():.3f}",
            flush=True,
        )
    rows, picture = arguments.out / "mnist.csv", arguments.out / "mnist.png"
    mnist_report.write_rows(runs, rows)
    mnist_report.draw(runs, picture)
    print(f"\n{mnist_report.format_table(runs)}\n\nWrote {rows} and {picture}.")


def speed(arguments: argparse.Namespace) -> None:
    """Time the updates; print every row as it is measured, write rows and picture."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(
        "Whole updates in turns, medians. x Adam: time over that of optax.adam;\n"
        "% step: share of a training step; state and temp: bytes per parameter.\n\n"
        f"{speed_report.HEADER}",
        flush=True,
    )
    measurements = []
    for case in make_cases(arguments.sizes):
        for one in run_case(case):
            measurements.append(one)
            print(speed_report.format_row(one), flush=True)
    rows, picture = arguments.out / "speed.csv", arguments.out / "speed.png"
    speed_report.write_rows(measurements, rows)
    speed_report.draw(measurements, picture)
    print(f"\nWrote {rows} and {picture}.")


def main(command_line: list[str] | None = None) -> None:
    """Run the experiment that the command line names."""
    parser = make_parser()
    arguments = parser.parse_args(command_line)
    try:
        {"mnist": mnist, "speed": speed}[arguments.experiment](arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog} {arguments.experiment}: {error}")


if __name__ == "__main__":
    main()
