"""The commands. Each one reads its words, calls one function below, and prints what came back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, islice
from typing import Annotated, Any

import typer

from raybert.cli import words
from raybert.config import TASK_NAMES
from raybert.version import VERSION

app = typer.Typer(
    name="raybert",
    help="Batch inference and embedding for BERT on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Add --debug to any command to see the traceback of an error.",
)

_LINES_AT_ONCE = 1024

# The panels of --help.
_INPUT, _OUTPUT, _HEADS, _RESOURCES = "Input", "Output", "Heads", "Resources"
_RELIABILITY, _RUN_FILE = "Reliability", "Run file and logs"

Model = Annotated[
    str | None, typer.Option(help='A folder, a hub id, or "demo".', metavar="MODEL", rich_help_panel=_HEADS)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", metavar="REV", rich_help_panel=_HEADS)
]
OptionWords = Annotated[
    list[str] | None,
    typer.Option(
        "--option", help="A task option; repeat for more.", metavar="[NAME.]KEY=VALUE", rich_help_panel=_HEADS
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens a text is cut to.", metavar="TOKENS", rich_help_panel=_HEADS)
]
Prompt = Annotated[str | None, typer.Option(help="Text put before every text.", rich_help_panel=_HEADS)]
Dimensions = Annotated[
    int | None, typer.Option(help="Keep the first so many numbers of a vector.", metavar="N", rich_help_panel=_HEADS)
]
PoolingMode = Annotated[
    str | None, typer.Option(help="cls, mean, max, ...; several joined by +.", metavar="MODE", rich_help_panel=_HEADS)
]
Windows = Annotated[
    str | None,
    typer.Option(help="What happens to longer texts: truncate or slide.", metavar="HOW", rich_help_panel=_HEADS),
]
Stride = Annotated[
    int | None, typer.Option(help="Sliding: tokens that windows share.", metavar="TOKENS", rich_help_panel=_HEADS)
]
Aggregation = Annotated[
    str | None,
    typer.Option(
        help="ner: none, simple, first, average, max; sliding: mean, max.", metavar="HOW", rich_help_panel=_HEADS
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="How many answers or scores there are.", metavar="N", rich_help_panel=_HEADS),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="Multi-label: the lowest score of a given label.", metavar="SCORE", rich_help_panel=_HEADS),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", metavar="DEVICE", rich_help_panel=_RESOURCES)]
Dtype = Annotated[
    str | None, typer.Option(help="auto, float32, bfloat16 or float16.", metavar="DTYPE", rich_help_panel=_RESOURCES)
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Batch inference and embedding for BERT on Ray."""


@app.command()
def predict(  # noqa: PLR0913  one parameter a flag
    task: Annotated[str, typer.Argument(help=f"{', '.join(sorted(set(TASK_NAMES.values())))}.", metavar="TASK")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none reads lines of stdin.", metavar="TEXT")] = None,
    *,
    model: Model = None,
    revision: Revision = None,
    option: OptionWords = None,
    max_length: MaxLength = None,
    prompt: Prompt = None,
    dimensions: Dimensions = None,
    pooling: PoolingMode = None,
    windows: Windows = None,
    stride: Stride = None,
    aggregation: Aggregation = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer texts from the arguments or stdin: one JSON value a line on stdout."""
    short = {
        "max_length": max_length,
        "prompt": prompt,
        "dimensions": dimensions,
        "pooling": pooling,
        "windows": windows,
        "stride": stride,
        "aggregation": aggregation,
        "top_k": top_k,
        "threshold": threshold,
    }
    (spec,) = words.head_specs([task], model=model, revision=revision, options=option or (), short=short)
    from raybert.cli.answers import plain
    from raybert.predict import load

    predictor = load(
        spec.model, spec.task, revision=spec.revision, device=device or "auto", dtype=dtype or "auto", **spec.options
    )
    source = iter(texts) if texts else _stdin_lines()
    row = 0
    while lines := list(islice(source, _LINES_AT_ONCE)):
        read = [words.item(predictor.task, line, row + at) for at, line in enumerate(lines)]
        for _, group in groupby(read, key=type):  # texts, or pairs
            items = list(group)
            for answer in _answers(predictor, items, row):
                sys.stdout.write(json.dumps(plain(answer)) + "\n")
            sys.stdout.flush()
            row += len(items)


def _answers(predictor: Any, items: list[Any], row: int) -> Any:
    """An answer a line; an error names the line's row."""
    from raybert.errors import RowError
    from raybert.predict import Reranker

    if isinstance(predictor, Reranker):
        return [ranked for at, item in enumerate(items) for ranked in _ranked(predictor, item, row + at)]
    try:
        return predictor(items)
    except RowError as error:
        raise RowError(row + error.row, error.reason, error.detail) from None


def _ranked(predictor: Any, item: Any, row: int) -> list[Any]:
    """One query's answer, as a list of one."""
    from raybert.errors import RowError

    try:
        return [predictor(*item)]
    except RowError as error:
        raise RowError(row, error.reason, f"document {error.row}: {error.detail}") from None


def _stdin_lines() -> Iterator[str]:
    from raybert.errors import RowError

    for row, line in enumerate(sys.stdin.buffer):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise RowError(row, "invalid_utf8", f"byte {error.start} of the line is not UTF-8") from None


def _use_config(context: typer.Context, value: str | None) -> str | None:
    from raybert.cli.runfile import use_config

    return use_config(context, value)


@app.command()
def run(  # noqa: PLR0913  one parameter a flag
    context: typer.Context,
    head: Annotated[
        list[str] | None, typer.Argument(help="TASK, TASK=MODEL or NAME:TASK=MODEL.", metavar="HEAD...")
    ] = None,
    *,
    input: Annotated[  # noqa: A002
        str | None, typer.Option("--input", help="A file, folder or URI.", metavar="URI", rich_help_panel=_INPUT)
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="The run's folder.", metavar="URI", rich_help_panel=_OUTPUT)
    ] = None,
    model: Model = None,
    revision: Revision = None,
    text_column: Annotated[
        str | None, typer.Option(help="The column of texts [default: text].", metavar="COL", rich_help_panel=_INPUT)
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(help="The column of second texts, or lists of choices.", metavar="COL", rich_help_panel=_INPUT),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Columns to carry along.", metavar="COL,COL|all", rich_help_panel=_OUTPUT)
    ] = None,
    input_format: Annotated[
        str | None, typer.Option(help="auto, parquet, jsonl or text.", metavar="FORMAT", rich_help_panel=_INPUT)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N rows.", metavar="N", rich_help_panel=_INPUT)
    ] = None,
    split_rows: Annotated[
        int | None, typer.Option(help="Most rows of a part [default: 16384].", metavar="N", rich_help_panel=_OUTPUT)
    ] = None,
    split_bytes: Annotated[
        str | None,
        typer.Option(help="Most input bytes of a part [default: 32MiB].", metavar="SIZE", rich_help_panel=_OUTPUT),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Tokens of one forward.", metavar="TOKENS", rich_help_panel=_RESOURCES)
    ] = None,
    actors: Annotated[
        str | None, typer.Option(help="Model actors.", metavar="N|MIN:MAX", rich_help_panel=_RESOURCES)
    ] = None,
    cpus_per_actor: Annotated[
        float | None, typer.Option(help="CPUs booked for one actor.", metavar="X", rich_help_panel=_RESOURCES)
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="GPUs booked for one actor.", metavar="X", rich_help_panel=_RESOURCES)
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    vector_type: Annotated[
        str | None, typer.Option(help="float32 or float16, as written.", metavar="TYPE", rich_help_panel=_OUTPUT)
    ] = None,
    option: OptionWords = None,
    max_length: MaxLength = None,
    prompt: Prompt = None,
    dimensions: Dimensions = None,
    pooling: PoolingMode = None,
    windows: Windows = None,
    stride: Stride = None,
    aggregation: Aggregation = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the run would take, and stop.", rich_help_panel=_RESOURCES)
    ] = False,
    sync: Annotated[
        bool,
        typer.Option("--sync/--no-sync", help="Drop the parts of input files that are gone.", rich_help_panel=_OUTPUT),
    ] = False,
    max_quarantine: Annotated[
        str | None, typer.Option(help="Stop when more rows are bad.", metavar="N|SHARE%", rich_help_panel=_RELIABILITY)
    ] = None,
    retry_quarantine: Annotated[
        bool,
        typer.Option(
            "--retry-quarantine", help="Try rows again that a retry could heal.", rich_help_panel=_RELIABILITY
        ),
    ] = False,
    retry_reason: Annotated[
        list[str] | None,
        typer.Option(
            help="A reason to try again beside those; repeat it.", metavar="REASON", rich_help_panel=_RELIABILITY
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier run left.", rich_help_panel=_OUTPUT)
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster.", metavar="ADDRESS", rich_help_panel=_RESOURCES)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="A run file; the command line wins over it.",
            metavar="FILE",
            is_eager=True,
            callback=_use_config,
            rich_help_panel=_RUN_FILE,
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print this run as a run file, and stop.", rich_help_panel=_RUN_FILE)
    ] = False,
    log_format: Annotated[
        str,
        typer.Option(help="text, or json: an object a line on stderr.", metavar="FORMAT", rich_help_panel=_RUN_FILE),
    ] = "text",
    metrics: Annotated[
        bool,
        typer.Option("--metrics/--no-metrics", help="Count in Ray's own metrics.", rich_help_panel=_RUN_FILE),
    ] = False,
) -> None:
    """Run heads over a corpus into a folder of Parquet parts. Run it again to continue."""
    from raybert.cli import runfile
    from raybert.config import one_of

    runfile.check_given(head=head, input=input, output=output)
    one_of("log-format", log_format, ("text", "json"))
    short = {
        "max_length": max_length,
        "prompt": prompt,
        "dimensions": dimensions,
        "pooling": pooling,
        "windows": windows,
        "stride": stride,
        "aggregation": aggregation,
        "top_k": top_k,
        "threshold": threshold,
    }
    task_options = runfile.option_words(context, option or ())
    specs = words.head_specs(head or (), model=model, revision=revision, options=task_options, short=short)
    if print_config:
        typer.echo(runfile.printed(context, specs, ["model", "revision", "option", *short]))
        return
    given: dict[str, Any] = {
        "text_column": text_column,
        "pair_column": pair_column,
        "keep": words.columns(keep),
        "input_format": input_format,
        "limit": limit,
        "split_rows": split_rows,
        "split_bytes": None if split_bytes is None else words.size("split-bytes", split_bytes),
        "vector_type": vector_type,
        "dtype": dtype,
        "device": device,
        "budget": budget,
    }
    from raybert.cli.batch import run_and_show, show_plan

    asked: dict[str, Any] = {
        "input_uri": input,
        "output": output,
        "actors": None if actors is None else words.actor_range(actors),
        "cpus_per_actor": cpus_per_actor,
        "gpus_per_actor": gpus_per_actor,
        "sync": sync,
        "overwrite": overwrite,
        "address": address,
    }
    options = {key: value for key, value in given.items() if value is not None}
    if plan:
        show_plan(specs, options, **asked)
        return
    run_and_show(
        specs,
        options,
        max_quarantine=max_quarantine,
        retry_quarantine=retry_quarantine,
        retry_reasons=tuple(retry_reason or ()),
        metrics=metrics,
        log_format=log_format,
        **asked,
    )


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="A run's folder.", metavar="OUTPUT")],
    *,
    full: Annotated[bool, typer.Option("--full", help="Read everything and recompute digests.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Prove that a run lost nothing; exit 1 names what is wrong."""
    from raybert.data.verify import verify as verify_run

    report = verify_run(output, full=full)
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=1))
        raise typer.Exit(0 if report.ok else 1)
    for problem in report.problems:
        sys.stderr.write(f"{problem}\n")
    tokens = ", ".join(f"{count:,} {name} tokens" for name, count in report.tokens.items())
    typer.echo(
        f"{'ok' if report.ok else words.counted(len(report.problems), 'problem')}: "
        f"{words.counted(report.files, 'file')}, {words.counted(report.parts, 'part')}, "
        f"{words.counted(report.rows_in, 'row')} in = {report.ok_rows:,} ok + {report.quarantined:,} quarantined + "
        f"{report.filtered:,} filtered{', ' + tokens if tokens else ''}"
    )
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def parity(
    output: Annotated[str, typer.Argument(help="A run's folder.", metavar="OUTPUT")],
    *,
    rows: Annotated[int, typer.Option(help="How many rows.", metavar="N")] = 200,
    seed: Annotated[int, typer.Option(help="Another one draws other rows.", metavar="S")] = 0,
    input: Annotated[  # noqa: A002
        str | None, typer.Option("--input", help="Where the run's input lies now.", metavar="URI")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Where a head's checkpoint lies now; repeat for more.", metavar="NAME=PATH")
    ] = None,
) -> None:
    """Answer a sample of a run's rows anew and compare every column; exit 1 names rows that differ."""
    from raybert.cli.parity import compare_and_show

    if not compare_and_show(output, rows=rows, seed=seed, input_uri=input, models=model or ()):
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help='A folder, a hub id, or "demo".', metavar="MODEL")],
    *,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a checkpoint's architecture, heads, fingerprint and size; no weight is loaded."""
    from raybert.cli.inspect import describe

    facts = describe(model, revision)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value if isinstance(value, str | int) else json.dumps(value)}")


@app.command()
def demo(
    *,
    folder: Annotated[str, typer.Option(help="Where corpus and vectors go.")] = "raybert-demo",
    model: Annotated[str, typer.Option(help="Any other model.", metavar="MODEL")] = "demo",
) -> None:
    """Embed the docstrings of Python's standard library through a real job, and ask them three questions."""
    from raybert.cli.demo import run_demo

    run_demo(folder, model)
