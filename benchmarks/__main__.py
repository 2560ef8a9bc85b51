"""Run an experiment: `python -m benchmarks mnist`.

It shows how it goes, prints tables, writes raw rows and pictures. What was stopped goes
on where it was.
"""

import argparse
import importlib
import pathlib
import pkgutil
import sys
import time
from typing import Any, NoReturn

from benchmarks import experiments
from benchmarks.reporting import page

NAMES = [module.name for module in pkgutil.iter_modules(experiments.__path__)]


class Parser(argparse.ArgumentParser):
    """A parser that reports what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help tells more)\n")


def load(name: str) -> Any:
    """Return the module of an experiment: add_arguments, run, report and TIME."""
    return importlib.import_module(f"benchmarks.experiments.{name}")


def make_parser() -> Parser:
    """Return the parser of all experiments."""
    parser = Parser("python -m benchmarks", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name in NAMES:
        module = load(name)
        text = f"{module.__doc__.splitlines()[0]} ({module.TIME})"
        command = commands.add_parser(
            name.replace("_", "-"),
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        what = "folder for rows and pictures"
        command.add_argument("--out", type=pathlib.Path, default="results", help=what)
        module.add_arguments(command)
    commands.add_parser("report", help="All pages and pictures, from rows (3 minutes)")
    return parser


def main(command_line: list[str] | None = None) -> None:
    """Run the experiment that the command line names."""
    parser = make_parser()
    arguments = parser.parse_args(command_line)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {text}", flush=True)

    try:
        if arguments.experiment == "report":
            page.write_all({name: load(name) for name in NAMES}, say)
            return
        module = load(arguments.experiment.replace("-", "_"))
        module.run(arguments, say)
        # Parts of a table that is put together on a page are left to that.
        for head, text in module.report(arguments.out).items():
            if text.startswith("|"):
                print(f"\n{head}:\n\n{text}")
        print(f"\nRows and pictures: {arguments.out}")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog} {arguments.experiment}: {error}")


if __name__ == "__main__":
    main()
