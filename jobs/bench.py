"""Speed against peers, in one run, on real text: the docstrings of Python's standard library.

    python jobs/bench.py engine     one process: raybert fp32 and bf16 against sentence-transformers' default encode
    python jobs/bench.py job        the Ray Data job with one actor against the same work in one process
    python jobs/bench.py heads      three heads of one trunk in one job against three jobs of one head each

Real tokens a second (truncated, unpadded), end to end from texts to normalised vectors. The contestants take turns,
each turn has texts of its own, no answer is cached. What is printed is each one's median, and the median of the ratios
within a round, since the speed of a machine drifts. Exit 1 below a gate.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.cli.demo import docstrings

LIBRARIES = ("torch", "sentence-transformers", "transformers", "tokenizers", "ray", "numpy")
Encode = Callable[[Sequence[str]], np.ndarray]


def corpus(seed: int) -> list[str]:
    """All docstrings in a shuffled order."""
    texts = [text for _, text in docstrings()]
    random.Random(seed).shuffle(texts)  # noqa: S311
    return texts


def describe(threads: int) -> None:
    """Say where this runs and with what."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    print(f"{model}, {os.cpu_count()} processors, {threads} threads; {versions}")


def seconds(encode: Encode, texts: Sequence[str]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    encode(texts)
    return time.perf_counter() - begin


def min_cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Smallest cosine of the rows, in double precision."""
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    norms = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return float(((a_ND * b_ND).sum(1) / norms).min())


def bench_engine(arguments: argparse.Namespace) -> int:
    """Raybert in one process against sentence-transformers in the same process."""
    import torch
    from sentence_transformers import SentenceTransformer

    import raybert
    from raybert.checkpoint.hub import resolve

    torch.set_num_threads(arguments.threads)
    describe(arguments.threads)
    peer = SentenceTransformer(str(resolve(arguments.model)), device="cpu")
    ours = {
        dtype: raybert.load(arguments.model, "embed", dtype=dtype, device="cpu", threads=arguments.threads)
        for dtype in ("float32", "bfloat16")
    }
    contestants: dict[str, Encode] = {"sentence-transformers": lambda texts: np.asarray(peer.encode(list(texts)))}
    contestants |= {f"raybert {dtype}": predictor for dtype, predictor in ours.items()}
    texts = corpus(arguments.seed)
    sample, texts = texts[: arguments.texts], texts[arguments.texts :]
    expected = contestants["sentence-transformers"](sample)
    cosines = {name: min_cosine(encode(sample), expected) for name, encode in contestants.items()}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    counter = ours["float32"].task
    for number in range(arguments.rounds):
        for turn, (name, encode) in enumerate(contestants.items()):
            begin = (number * len(contestants) + turn) * arguments.texts % (len(texts) - arguments.texts)
            chosen = texts[begin : begin + arguments.texts]
            tokens = int(counter.encode(chosen).lengths.sum())
            speeds[name].append(tokens / seconds(encode, chosen))
    print(f"{'':24}{'tokens/s':>12}{'spread':>18}{'ratio':>8}{'min cosine':>13}")
    ratios = {}
    for name, runs in speeds.items():
        ratios[name] = statistics.median(a / b for a, b in zip(runs, speeds["sentence-transformers"], strict=True))
        spread = f"{min(runs):,.0f}-{max(runs):,.0f}"
        print(f"{name:24}{statistics.median(runs):12,.0f}{spread:>18}{ratios[name]:8.2f}{cosines[name]:13.7f}")
    gates = (("float32", arguments.gate_fp32, 0.999999), ("bfloat16", arguments.gate_bf16, 0.9998))
    failed = [
        f"raybert {dtype}: ratio {ratios[f'raybert {dtype}']:.2f} (gate {gate}), "
        f"min cosine {cosines[f'raybert {dtype}']:.7f} (gate {cosine})"
        for dtype, gate, cosine in gates
        if ratios[f"raybert {dtype}"] < gate or cosines[f"raybert {dtype}"] < cosine
    ]
    for line in failed:
        print(f"below the gate: {line}")
    return 1 if failed else 0


def in_process(file: Path, output: Path, model: str, dtype: str, threads: int, rows: int) -> float:
    """What a home-made script does: read, embed and write so many rows at a time; tokens/s from its first file on."""
    import raybert

    predictor = raybert.load(model, "embed", dtype=dtype, device="cpu", threads=threads)
    output.mkdir()
    tokens, written = [], []
    for number, batch in enumerate(pq.ParquetFile(file).iter_batches(rows, columns=["text"])):
        texts = batch.column("text").to_pylist()
        vectors_ND = predictor(texts)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
        pq.write_table(pa.table({"v": values}), output / f"{number:06d}.parquet")
        written.append(time.perf_counter())
        tokens.append(texts)
    counted = [int(predictor.task.encode(texts).tokens.sum()) for texts in tokens[1:]]
    return sum(counted) / (written[-1] - written[0])


def print_in_process(arguments: argparse.Namespace) -> int:
    """`in_process` for the parent's eyes."""
    file, output, model, dtype, threads, rows = arguments.words
    print(json.dumps(in_process(Path(file), Path(output), model, dtype, int(threads), int(rows))))
    return 0


def processes_alone(files: Sequence[Path], folder: Path, arguments: argparse.Namespace) -> float:
    """A process for each file, all at once; their tokens/s together."""
    threads = str(max(1, arguments.threads // len(files)))
    settings = [arguments.model, arguments.dtype, threads, str(arguments.split_rows)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "in-process", str(file), str(folder / file.stem), *settings],
            stdout=subprocess.PIPE,
            text=True,
        )
        for file in files
    ]
    speeds = [float(process.communicate()[0]) for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process of the comparison failed")
    return sum(speeds)


def bench_job(arguments: argparse.Namespace) -> int:
    """The job, from its first commit to its last, against as many processes as it has actors; all read and write."""
    import raybert.data

    describe(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="raybert-bench-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        texts = corpus(arguments.seed)
        texts = [f"{number}: {texts[number % len(texts)]}" for number in range(arguments.rows)]
        files = [folder / "in" / f"{number}.parquet" for number in range(arguments.actors)]
        for number, file in enumerate(files):
            pq.write_table(pa.table({"text": texts[number :: len(files)]}), file)
        ratios = []
        for number in range(arguments.rounds):
            (folder / f"alone{number}").mkdir()
            alone = processes_alone(files, folder / f"alone{number}", arguments)
            report: Any = raybert.data.run(
                {"v": (arguments.model, "embed")},
                input=str(folder / "in"),
                output=str(folder / f"out{number}"),
                dtype=arguments.dtype,
                split_rows=arguments.split_rows,
                actors=arguments.actors,
            )
            job = report.tokens_per_second
            ratios.append(job / alone)
            print(
                f"processes alone: {len(files)}, {alone:,.0f} tokens/s; job with as many actors {job:,.0f} tokens/s "
                f"({report.last_commit - report.first_commit:.0f} s from first to last commit, first commit "
                f"{report.first_commit - report.started:.0f} s after the start); ratio {ratios[-1]:.3f}"
            )
    ratio = statistics.median(ratios)
    gate = arguments.gate or {1: 0.93}.get(arguments.actors, 0.95)
    print(f"median ratio {ratio:.3f}")
    if ratio < gate:
        print(f"below the gate of {gate}")
        return 1
    return 0


Heads = dict[str, tuple[str, str, dict[str, Any]]]


def three_heads(folder: Path, model: str) -> Heads:
    """An embedding, a classifier and a tagger of one trunk; the last two with new weights, which cost the same.

    The tagger leans to "O", so that as in real text few tokens are of an entity: decoding is counted as it comes.
    """
    import torch

    import raybert

    topic = raybert.BertForSequenceClassification.from_pretrained(model, new_head=True, num_labels=5)
    tags = dict(enumerate(["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]))
    people = raybert.BertForTokenClassification.from_pretrained(model, new_head=True, id2label=tags)
    with torch.no_grad():
        people.classifier.bias[0] += 0.4
    for name, made in (("topic", topic), ("people", people)):
        made.save_pretrained(folder / name)
        raybert.BertTokenizer.from_pretrained(model).save_pretrained(folder / name)
    windows = {"max_length": 256, "windows": "truncate"}
    return {
        "vector": (model, "embed", windows),
        "topic": (str(folder / "topic"), "classify", windows),
        "people": (str(folder / "people"), "ner", windows),
    }


def bench_heads(arguments: argparse.Namespace) -> int:
    """Rows a second between the first commit and the last, of one job with three heads and of three with one."""
    import raybert.data

    describe(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="raybert-bench-") as folder:
        heads = three_heads(Path(folder), arguments.model)
        file = Path(folder, "corpus.parquet")
        texts = corpus(arguments.seed)
        pq.write_table(pa.table({"text": [texts[row % len(texts)] for row in range(arguments.rows)]}), file)

        def job(chosen: Heads, number: int) -> tuple[float, int]:
            report: Any = raybert.data.run(
                chosen,
                input=str(file),
                output=str(Path(folder, f"{'-'.join(chosen)}{number}")),
                dtype=arguments.dtype,
                split_rows=arguments.split_rows,
                actors=1,
            )
            rows = report.rows - report.first_rows
            return rows / (report.last_commit - report.first_commit), report.forwarded

        ratios = []
        for number in range(arguments.rounds):
            together, tokens = job(heads, number)
            lone = {name: job({name: heads[name]}, number) for name in heads}
            apart = 1 / sum(1 / speed for speed, _ in lone.values())
            ratios.append(together / apart)
            each = ", ".join(f"{name} {speed:,.0f}" for name, (speed, _) in lone.items())
            print(
                f"rows/s: together {together:,.0f}; alone {each}, one after the other {apart:,.0f}; ratio "
                f"{ratios[-1]:.2f}; tokens forwarded {tokens:,} against {sum(count for _, count in lone.values()):,}"
            )
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.2f}")
    if ratio < arguments.gate:
        print(f"below the gate of {arguments.gate}")
        return 1
    return 0


def main() -> int:
    """Read the command line and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    engine = commands.add_parser("engine", help="one process against sentence-transformers")
    engine.add_argument("--texts", type=int, default=500, help="texts a turn")
    engine.add_argument("--rounds", type=int, default=5)
    engine.add_argument("--gate-fp32", type=float, default=2.0)
    engine.add_argument("--gate-bf16", type=float, default=3.5)
    engine.set_defaults(run=bench_engine)
    job = commands.add_parser("job", help="the Ray Data job against processes that read, embed and write")
    job.add_argument("--rows", type=int, default=20_000)
    job.add_argument("--rounds", type=int, default=1)
    job.add_argument("--split-rows", type=int, default=1000)
    job.add_argument("--dtype", default="float32")
    job.add_argument("--actors", type=int, default=1, help="of one thread each if there are as many as --threads")
    job.add_argument("--gate", type=float, help="0.93 for one actor, else 0.95")
    job.set_defaults(run=bench_job)
    heads = commands.add_parser("heads", help="three heads of one trunk in one job against three jobs")
    heads.add_argument("--rows", type=int, default=4_000)
    heads.add_argument("--rounds", type=int, default=1)
    heads.add_argument("--split-rows", type=int, default=500)
    heads.add_argument("--dtype", default="float32")
    heads.add_argument("--gate", type=float, default=2.4)
    heads.set_defaults(run=bench_heads)
    for each in (engine, job, heads):
        each.add_argument("--model", default="demo")
        each.add_argument("--threads", type=int, default=os.cpu_count())
        each.add_argument("--seed", type=int, default=0)
    alone = commands.add_parser("in-process", help="used by job: one process's tokens a second")
    alone.add_argument("words", nargs=6, metavar=("FILE", "OUTPUT", "MODEL", "DTYPE", "THREADS", "ROWS"))
    alone.set_defaults(run=print_in_process)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
