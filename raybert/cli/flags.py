"""The options of more than one command, and all those of ``raybert run``: each is declared here and nowhere else."""

from __future__ import annotations

from typing import Annotated

import typer

# The panels of --help.
_INPUT, _OUTPUT, _HEADS, _RESOURCES = "Input", "Output", "Heads", "Resources"
_RELIABILITY, _RUN_FILE = "Reliability", "Run file and logs"

SHORT = (
    "max_length",
    "prompt",
    "dimensions",
    "pooling",
    "windows",
    "stride",
    "aggregation",
    "top_k",
    "threshold",
)
"""Task options that have a flag of their own."""

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


def _use_config(context: typer.Context, value: str | None) -> str | None:
    """Read the run file before any other option."""
    from raybert.cli.runfile import use_config

    return use_config(context, value)


HeadWords = Annotated[list[str] | None, typer.Argument(help="TASK, TASK=MODEL or NAME:TASK=MODEL.", metavar="HEAD")]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", help="A file, folder, URI or pattern; repeat for more.", metavar="URI", rich_help_panel=_INPUT
    ),
]
Output = Annotated[str | None, typer.Option(help="The run's folder.", metavar="URI", rich_help_panel=_OUTPUT)]
TextColumn = Annotated[
    str | None, typer.Option(help="The column of texts (default: text).", metavar="COL", rich_help_panel=_INPUT)
]
Text = Annotated[
    str | None,
    typer.Option(
        help="Texts made of columns, in place of a column: '{title}. {body}'.",
        metavar="TEMPLATE",
        rich_help_panel=_INPUT,
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        help="Only rows for which this holds: \"lang == 'en' and score > 0.5\".",
        metavar="EXPRESSION",
        rich_help_panel=_INPUT,
    ),
]
MaxRowBytes = Annotated[
    str | None,
    typer.Option(
        help="A larger row goes into the quarantine (default: 64MiB).", metavar="SIZE", rich_help_panel=_INPUT
    ),
]
PairColumn = Annotated[
    str | None,
    typer.Option(help="The column of second texts, or lists of choices.", metavar="COL", rich_help_panel=_INPUT),
]
Keep = Annotated[
    str | None, typer.Option(help="Columns to carry along.", metavar="COL,COL|all", rich_help_panel=_OUTPUT)
]
InputFormat = Annotated[
    str | None, typer.Option(help="auto, parquet, jsonl, csv or text.", metavar="FORMAT", rich_help_panel=_INPUT)
]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows.", metavar="N", rich_help_panel=_INPUT)]
SplitRows = Annotated[
    int | None, typer.Option(help="Most rows of a part (default: 16384).", metavar="N", rich_help_panel=_OUTPUT)
]
SplitBytes = Annotated[
    str | None,
    typer.Option(help="Most input bytes of a part (default: 32MiB).", metavar="SIZE", rich_help_panel=_OUTPUT),
]
Budget = Annotated[
    int | None, typer.Option(help="Tokens of one forward.", metavar="TOKENS", rich_help_panel=_RESOURCES)
]
Actors = Annotated[str | None, typer.Option(help="Model actors.", metavar="N|MIN:MAX", rich_help_panel=_RESOURCES)]
CpusPerActor = Annotated[
    float | None, typer.Option(help="CPUs booked for one actor.", metavar="X", rich_help_panel=_RESOURCES)
]
GpusPerActor = Annotated[
    float | None, typer.Option(help="GPUs booked for one actor.", metavar="X", rich_help_panel=_RESOURCES)
]
VectorType = Annotated[
    str | None, typer.Option(help="float32 or float16, as written.", metavar="TYPE", rich_help_panel=_OUTPUT)
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Say what the run would take, and stop.", rich_help_panel=_RESOURCES)
]
Sync = Annotated[
    bool,
    typer.Option("--sync/--no-sync", help="Drop the parts of input files that are gone.", rich_help_panel=_OUTPUT),
]
MaxQuarantine = Annotated[
    str | None, typer.Option(help="Stop when more rows are bad.", metavar="N|SHARE%", rich_help_panel=_RELIABILITY)
]
RetryQuarantine = Annotated[
    bool,
    typer.Option("--retry-quarantine", help="Try rows again that a retry could heal.", rich_help_panel=_RELIABILITY),
]
RetryReason = Annotated[
    list[str] | None,
    typer.Option(help="A reason to try again beside those; repeat it.", metavar="REASON", rich_help_panel=_RELIABILITY),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what an earlier run left.", rich_help_panel=_OUTPUT)
]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster.", metavar="ADDRESS", rich_help_panel=_RESOURCES)]
Config = Annotated[
    str | None,
    typer.Option(
        help="A run file; the command line wins over it.",
        metavar="FILE",
        is_eager=True,
        callback=_use_config,
        rich_help_panel=_RUN_FILE,
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print this run as a run file, and stop.", rich_help_panel=_RUN_FILE)
]
LogFormat = Annotated[
    str,
    typer.Option(help="text, or json: an object a line on stderr.", metavar="FORMAT", rich_help_panel=_RUN_FILE),
]
Metrics = Annotated[
    bool,
    typer.Option("--metrics/--no-metrics", help="Count in Ray's own metrics.", rich_help_panel=_RUN_FILE),
]
