"""The commands. Each one reads its words, calls one function below, and prints what came back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, islice
from typing import Annotated, Any

import typer

from raybert.cli import flags, words
from raybert.config import TASK_NAMES
from raybert.errors import SettingsError
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
    context: typer.Context,
    task: Annotated[str, typer.Argument(help=f"{', '.join(sorted(set(TASK_NAMES.values())))}.", metavar="TASK")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none reads lines of stdin.", metavar="TEXT")] = None,
    *,
    model: flags.Model = None,
    revision: flags.Revision = None,
    option: flags.OptionWords = None,
    max_length: flags.MaxLength = None,
    prompt: flags.Prompt = None,
    dimensions: flags.Dimensions = None,
    pooling: flags.PoolingMode = None,
    windows: flags.Windows = None,
    stride: flags.Stride = None,
    aggregation: flags.Aggregation = None,
    top_k: flags.TopK = None,
    threshold: flags.Threshold = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
) -> None:
    """Answer texts from the arguments or stdin: one JSON value a line on stdout."""
    short = {name: context.params[name] for name in flags.SHORT}
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


@app.command()
def run(  # noqa: PLR0913  one parameter a flag
    context: typer.Context,
    head: flags.HeadWords = None,
    *,
    input: flags.Input = None,  # noqa: A002
    output: flags.Output = None,
    model: flags.Model = None,
    revision: flags.Revision = None,
    text_column: flags.TextColumn = None,
    text: flags.Text = None,
    where: flags.Where = None,
    pair_column: flags.PairColumn = None,
    keep: flags.Keep = None,
    input_format: flags.InputFormat = None,
    limit: flags.Limit = None,
    split_rows: flags.SplitRows = None,
    split_bytes: flags.SplitBytes = None,
    max_row_bytes: flags.MaxRowBytes = None,
    budget: flags.Budget = None,
    actors: flags.Actors = None,
    cpus_per_actor: flags.CpusPerActor = None,
    gpus_per_actor: flags.GpusPerActor = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    vector_type: flags.VectorType = None,
    option: flags.OptionWords = None,
    max_length: flags.MaxLength = None,
    prompt: flags.Prompt = None,
    dimensions: flags.Dimensions = None,
    pooling: flags.PoolingMode = None,
    windows: flags.Windows = None,
    stride: flags.Stride = None,
    aggregation: flags.Aggregation = None,
    top_k: flags.TopK = None,
    threshold: flags.Threshold = None,
    plan: flags.Plan = False,
    sync: flags.Sync = False,
    max_quarantine: flags.MaxQuarantine = None,
    retry_quarantine: flags.RetryQuarantine = False,
    retry_reason: flags.RetryReason = None,
    overwrite: flags.Overwrite = False,
    address: flags.Address = None,
    config: flags.Config = None,
    print_config: flags.PrintConfig = False,
    log_format: flags.LogFormat = "text",
    metrics: flags.Metrics = False,
) -> None:
    """Run heads over a corpus into a folder of Parquet parts. Run it again to continue."""
    from raybert.cli import runfile
    from raybert.config import one_of

    runfile.check_given(head=head, input=input, output=output)
    one_of("log-format", log_format, ("text", "json"))
    short = {name: context.params[name] for name in flags.SHORT}
    task_options = runfile.option_words(context, option or ())
    specs = words.head_specs(head or (), model=model, revision=revision, options=task_options, short=short)
    if print_config:
        typer.echo(runfile.printed(context, specs, ["model", "revision", "option", *short]))
        return
    from raybert.cli.batch import run_and_show, show_plan

    options = words.job_options(context.params)
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
def report(output: Annotated[str, typer.Argument(help="A run's folder.", metavar="OUTPUT")]) -> None:
    """Write what a run did and answered into OUTPUT/_raybert/report.html and report.json."""
    from raybert.cli.report import report_and_show

    report_and_show(output)


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
    url: Annotated[
        str | None, typer.Option(help="A service that answers; RAYBERT_API_KEY opens it.", metavar="URL")
    ] = None,
) -> None:
    """Answer a sample of a run's rows anew and compare every column; exit 1 names rows that differ."""
    from raybert.cli.parity import compare_and_show

    if not compare_and_show(output, rows=rows, seed=seed, input_uri=input, models=model or (), url=url):
        raise typer.Exit(1)


@app.command()
def serve(  # noqa: PLR0913  one parameter a flag
    context: typer.Context,
    config: Annotated[
        str | None, typer.Argument(help="A Ray Serve configuration; see serve_configs/.", metavar="CONFIG")
    ] = None,
    *,
    model: flags.Model = None,
    task: Annotated[str | None, typer.Option(help="What it does; embed.", metavar="TASK")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call it; the model's last part.")] = None,
    revision: flags.Revision = None,
    option: flags.OptionWords = None,
    max_length: flags.MaxLength = None,
    prompt: flags.Prompt = None,
    dimensions: flags.Dimensions = None,
    pooling: flags.PoolingMode = None,
    windows: flags.Windows = None,
    stride: flags.Stride = None,
    aggregation: flags.Aggregation = None,
    top_k: flags.TopK = None,
    threshold: flags.Threshold = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    replicas: Annotated[str | None, typer.Option(help="How many; MIN:MAX scales by load.", metavar="N|MIN:MAX")] = None,
    host: Annotated[str | None, typer.Option(help="To listen on; 127.0.0.1 where the file names none.")] = None,
    port: Annotated[int | None, typer.Option(help="8000 where the file names none.", min=1, max=65535)] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Let everybody in, on any host.")] = False,
    haproxy: Annotated[
        bool | None,
        typer.Option("--haproxy/--no-haproxy", help="HAProxy or Ray's own proxy; HAProxy where Ray starts here."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check all of it, to the last key; start nothing.")] = False,
    address: flags.Address = None,
) -> None:
    """Serve heads over HTTP: OpenAI, TEI, Cohere and Hugging Face clients. With nothing given, the demo model."""
    short = {key: context.params[key] for key in flags.SHORT}
    given = {**short, "model": model, "task": task, "revision": revision, "option": option}
    if config is not None and (stray := next((key for key, value in given.items() if value), None)):
        raise SettingsError(f"--{stray.replace('_', '-')}: {config} says that itself; change it there")
    (spec,) = words.head_specs(
        [task or "embed"], model=model or "demo", revision=revision, options=option or (), short=short
    )
    from raybert.cli.serve import configuration, serve_or_check

    found, place = configuration(
        config,
        spec,
        name=name,
        dtype=dtype,
        device=device,
        replicas=None if replicas is None else words.actor_range(replicas, "replicas"),
        host=host,
        port=port,
    )
    serve_or_check(found, place, check=check, open_to_all=no_api_key, haproxy=haproxy, address=address)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help='A folder, a hub id, or "demo".', metavar="MODEL")],
    *,
    revision: flags.Revision = None,
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
