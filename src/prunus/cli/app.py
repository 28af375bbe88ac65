"""The commands and their help; what they run is imported then, as help must not pay for torch."""

import errno
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prunus.cli import options as o
from prunus.cli.given import Cut, Scoring, Subject, Training, Where
from prunus.cli.signals import Ended, ending_tidily
from prunus.cli.streams import silence
from prunus.errors import PrunusError

INTERRUPTED = 130
USER_ERROR = 2
_SIGNALLED = 128  # and the number of the signal: what shells say of who was ended by one


def _tell(line: str) -> None:
    """Say something on the standard error; where that takes no more, the exit code tells."""
    try:
        typer.echo(line, err=True)
    except OSError:
        silence(sys.stderr)


class _Commands(TyperGroup):
    """Ends errors of the user in one line; all others keep their traceback, for they are bugs."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; what the standard output cannot show is replaced, not fatal."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        try:
            return super().main(*args, **options)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            # What typer itself prints: help, the version.
            silence(sys.stdout)
            _tell(
                f"prunus: error: the output cannot be printed: {error.strerror}; send it elsewhere"
            )
            sys.exit(USER_ERROR)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            with ending_tidily():
                return super().invoke(ctx)
        except PrunusError as error:
            _tell(f"prunus: error: {' '.join(str(error).split())}")
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as error:
            _tell(
                "\nprunus: interrupted; with --out nothing is lost: run the same command with "
                "--resume to go on"
            )
            code = _SIGNALLED + error.number if isinstance(error, Ended) else INTERRUPTED
            raise typer.Exit(code) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make trained PyTorch networks smaller and faster, and prove it. The proof, a certificate, shows "
    "that a cut was carried out right, not that accuracy was kept: that is what the test score is for.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed

        typer.echo(f"prunus {installed('prunus')}")
        raise typer.Exit


@app.callback()
def _root(
    # Read before the command is looked for: there is none beside this option.
    _: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and end.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    return


@app.command(
    epilog="Example: prunus compress --model digits_cnn --train-epochs 20 --data digits "
    "--method l1 --target macs=0.5 --epochs 5 --out runs/l1\n\n"
    "A search in two processes: prunus compress --model resnet56 --weights resnet56.th "
    "--data cifar10 --method random-search --option evaluations=500 --target macs=0.5 "
    "--engine processes --workers 2 --out runs/search"
)
def compress(  # noqa: PLR0913, PLR0917  # one parameter an option
    model: o.Model = None,
    arguments: o.Arguments = None,
    weights: o.Weights = None,
    data: o.Data = None,
    text: o.TextSettings = None,
    image_size: o.ImageSize = None,
    method: o.Method = None,
    option: o.MethodOption = None,
    target: o.Target = None,
    ignore: o.Ignore = None,
    min_units: o.MinUnits = None,
    round_to: o.RoundTo = None,
    seed: o.Seed = None,
    epochs: o.Epochs = None,
    lr: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    distill: o.Distill = None,
    train_epochs: o.TrainEpochs = None,
    train_lr: o.TrainLearningRate = None,
    scratch_epochs: o.ScratchEpochs = None,
    optimizer: o.Optimizer = None,
    precision: o.Precision = None,
    layout: o.Layout = None,
    recipe: o.RecipeFile = None,
    out: o.Out = None,
    resume: o.Resume = False,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    latency: o.Latency = True,
    engine: o.Engine = "serial",
    workers: o.Workers = 1,
    address: o.Address = None,
    memory_mb: o.MemoryMb = 256,
) -> None:
    """Compress a network to a budget: decide, cut, certify, fine-tune, measure."""
    from prunus.cli.work import run_compress

    run_compress(
        Subject(model, tuple(arguments or ()), weights, data, tuple(text or ()), image_size),
        method,
        Cut(target, tuple(option or ()), tuple(ignore or ()), min_units, round_to),
        Training(
            epochs,
            lr,
            batch_size,
            distill,
            train_epochs,
            train_lr,
            scratch_epochs,
            optimizer,
            precision,
            layout,
        ),
        Where(out, resume, device, threads, latency),
        Scoring(engine, workers, address, memory_mb),
        recipe=recipe,
        seed=seed,
    )


@app.command(
    epilog="Example: prunus compare --model digits_cnn --train-epochs 20 --data digits "
    "--target macs=0.5 --epochs 5 --batch-size 32 --seeds 0,1,2 --out runs/demo\n\n"
    "On a Ray cluster: the same with --engine ray --address auto --workers 16\n\n"
    "Texts: prunus compare --suite text --model bert_tiny --data text:reviews.csv --train-epochs 10 "
    "--out runs/reviews\n\n"
    "Exit codes: 0 all rows done, 3 some failed and the report has the others, 2 nothing could be done"
)
def compare(  # noqa: PLR0913, PLR0917  # one parameter an option
    model: o.Model = None,
    arguments: o.Arguments = None,
    weights: o.Weights = None,
    data: o.Data = None,
    text: o.TextSettings = None,
    image_size: o.ImageSize = None,
    method: o.Methods = None,
    option: o.MethodOptions = None,
    target: o.Target = None,
    suite: o.Suite = None,
    ignore: o.Ignore = None,
    min_units: o.MinUnits = None,
    round_to: o.RoundTo = None,
    seeds: o.Seeds = "0",
    epochs: o.SuiteEpochs = None,
    lr: o.LearningRate = None,
    batch_size: o.SuiteBatchSize = None,
    distill: o.Distill = None,
    train_epochs: o.TrainEpochs = None,
    train_lr: o.TrainLearningRate = None,
    scratch_epochs: o.ScratchEpochs = None,
    optimizer: o.Optimizer = None,
    precision: o.Precision = None,
    layout: o.Layout = None,
    recipe: o.RecipeFiles = None,
    out: o.Out = None,
    resume: o.Resume = False,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    latency: o.Latency = True,
    engine: o.Engine = "serial",
    workers: o.Workers = 1,
    address: o.Address = None,
    memory_mb: o.MemoryMb = 256,
) -> None:
    """Compare methods at one budget, each with several seeds, and write the report."""
    from prunus.cli.work import run_compare

    run_compare(
        Subject(model, tuple(arguments or ()), weights, data, tuple(text or ()), image_size),
        tuple(method or ()),
        Cut(target, tuple(option or ()), tuple(ignore or ()), min_units, round_to),
        Training(
            epochs,
            lr,
            batch_size,
            distill,
            train_epochs,
            train_lr,
            scratch_epochs,
            optimizer,
            precision,
            layout,
        ),
        Where(out, resume, device, threads, latency),
        Scoring(engine, workers, address, memory_mb),
        recipes=tuple(recipe or ()),
        suite=suite,
        seeds=seeds,
    )


@app.command(
    epilog="Example: prunus train --model resnet20 --data cifar10 --epochs 30 --out runs/resnet20"
)
def train(  # noqa: PLR0913, PLR0917  # one parameter an option
    model: o.Model = None,
    arguments: o.Arguments = None,
    weights: o.Weights = None,
    data: o.Data = None,
    text: o.TextSettings = None,
    image_size: o.ImageSize = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 30,
    lr: o.TrainingLearningRate = None,
    batch_size: o.BatchSize = None,
    optimizer: o.TrainingOptimizer = None,
    precision: o.TrainingPrecision = None,
    layout: o.Layout = None,
    seed: Annotated[int, typer.Option(min=0, help="Of data order.", rich_help_panel="Run")] = 0,
    out: o.TrainingOut = None,
    resume: o.Resume = False,
    device: o.Device = "cpu",
    threads: o.OwnThreads = None,
) -> None:
    """Train a network from scratch, or on from weights, and save it as an artifact."""
    from prunus.cli.work import run_train

    run_train(
        Subject(model, tuple(arguments or ()), weights, data, tuple(text or ()), image_size),
        Training(epochs, lr, batch_size, None, None, None, None, optimizer, precision, layout),
        Where(out, resume, device, threads, latency=False),
        seed=seed,
    )


@app.command(epilog="Example: prunus measure --model resnet56 --shape 3,32,32")
def measure(  # noqa: PLR0913, PLR0917  # one parameter an option
    model: o.Model = None,
    arguments: o.Arguments = None,
    weights: o.Weights = None,
    data: o.Data = None,
    text: o.TextSettings = None,
    image_size: o.ImageSize = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Of one input, instead of --data: 3,32,32; of token ids: 128."),
    ] = None,
    ignore: o.Ignore = None,
    min_units: o.MinUnits = None,
    round_to: o.RoundTo = None,
    device: o.Device = "cpu",
    threads: o.OwnThreads = None,
    latency: o.Latency = True,
) -> None:
    """Measure a network, and list what can be cut from it. Nothing is changed."""
    from prunus.cli.inspect import run_measure

    run_measure(
        Subject(model, tuple(arguments or ()), weights, data, tuple(text or ()), image_size),
        Cut(None, (), tuple(ignore or ()), min_units, round_to),
        Where(None, False, device, threads, latency),
        shape=shape,
    )


@app.command(epilog="Example: prunus methods")
def methods() -> None:
    """List the methods, what they need, and which are null baselines."""
    from prunus.cli.inspect import run_methods

    run_methods()


@app.command(epilog="Example: prunus report runs/demo")
def report(
    path: Annotated[Path, typer.Argument(help="Run folder, or a JSON file with records.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; beside the records by default.")
    ] = None,
) -> None:
    """Draw the report of a run or a comparison again from its records."""
    from prunus.cli.show import run_report

    run_report(path, out)


def main() -> None:
    """Run the command line on the arguments of this process."""
    app(args=sys.argv[1:], prog_name="prunus")
