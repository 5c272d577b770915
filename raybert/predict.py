"""Heads in a Python process: `load` gives a predictor, a predictor answers texts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, Self

from raybert.config import HeadSpec, known_options, task_name
from raybert.engine import EngineSettings, Trunk, choose_settings, default_threads
from raybert.errors import RowError, SettingsError, UsageError
from raybert.tasks import TASKS, Task, make_task
from raybert.text.encoding import Windows

# Texts encoded at once; the next chunk is encoded while this one is computed.
_CHUNK_TEXTS = 4096


class Predictor:
    """One head, ready to answer; several threads may call it at once.

    Its threads end with `close`, with a ``with`` block, or when the predictor is deleted.

    Attributes:
        fingerprint: sha256 of everything that decides the answers; equal to a batch job's for the same head.
        columns: names of the columns that a batch job would write for it.
    """

    def __init__(self, task: Task, settings: EngineSettings, *, threads: int) -> None:
        self.task = task
        self.settings = settings
        self.fingerprint = task.fingerprint(settings.dtype)
        name = task.name.replace("-", "_")
        own = [field.name for field in task.columns(name, "float32")]
        self.columns = [*own, f"{name}_tokens", f"{name}_truncated"]
        task.tokenizer()  # one that is missing or of another model is told now, not at the first text
        self._closed = False
        self._trunk = Trunk({task.name: task}, settings, threads=threads)

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> Any:
        """Answer ``texts``, in order.

        Args:
            texts: any number of texts of any length; where the task takes them, pairs of texts.

        Returns:
            What the task gives: embed float32 [N, D].

        Raises:
            UsageError: a bare string where a list is meant; or the predictor is closed.
            RowError: a text that can't be encoded (not a string, a lone surrogate), with its row.
        """
        if isinstance(texts, str | bytes):
            raise UsageError(f"texts: a bare {type(texts).__name__} where a list of texts is meant; pass [text]")
        if self._closed:
            raise UsageError(f"predictor of {self.task.checkpoint.name}: closed; load it again")
        answers = []
        with closing(self._encoded(list(texts))) as chunks:
            for windows in chunks:
                arrays = self._trunk.run(windows, [self.task.name], spread=True)[self.task.name]
                answers.append(self.task.decode(windows, arrays))
        return self.task.join(answers)

    def _encoded(self, texts: list[Any]) -> Generator[Windows]:
        """Windows of consecutive chunks, one chunk ahead of the reader."""
        begins = iter(range(0, len(texts), _CHUNK_TEXTS))

        def encode(begin: int) -> Windows:
            try:
                return self.task.encode(texts[begin : begin + _CHUNK_TEXTS])
            except RowError as error:
                raise RowError(begin + error.row, error.reason, error.detail) from None

        with ThreadPoolExecutor(1, thread_name_prefix="raybert-encode") as encoder:
            ahead = [encoder.submit(encode, begin) for begin in islice(begins, 1)]
            while ahead:
                windows = ahead.pop().result()
                ahead += [encoder.submit(encode, begin) for begin in islice(begins, 1)]
                yield windows

    def close(self) -> None:
        """End the predictor's threads; it can't answer any more."""
        self._closed = True
        self._trunk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self) -> dict[str, Any]:
        """Model, options and settings in plain values."""
        config = self.task.checkpoint.config
        return {
            "model": self.task.checkpoint.name,
            "task": self.task.name,
            "options": self.task.options,
            "fingerprint": self.fingerprint,
            "columns": self.columns,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "engine": self.settings.as_dict(),
        }


def load(
    model: str,
    task: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    max_length: int | None = None,
    threads: int | None = None,
    **task_options: Any,
) -> Predictor:
    """Load one head into this process.

    Args:
        model: a folder, a hub id, or ``"demo"``.
        task: a task name (`raybert.config.TASK_NAMES`).
        device: auto, cpu or cuda.
        dtype: auto, float32, bfloat16 or float16; float32 is always exact.
        revision: branch, tag or commit of a hub id.
        max_length: tokens a text is cut to; None takes the checkpoint's.
        threads: processors to compute on; None takes all that this process may use. A GPU is fed by one.
        **task_options: the task's own, such as ``prompt`` and ``dimensions`` for embed.

    Raises:
        CheckpointError: the model can't be found, read or honoured.
        SettingsError: an option is unknown or out of range.
        DeviceError: the device or dtype is not to be had here.
    """
    name = task_name(task)
    known_options(name, task_options, TASKS[name].OPTIONS)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise SettingsError(f"threads {threads!r}: takes a whole number from 1")
    if max_length is not None:
        task_options["max_length"] = max_length
    opened = make_task(
        HeadSpec(name=name.replace("-", "_"), task=name, model=str(model), revision=revision, options=task_options)
    )
    config = opened.checkpoint.config
    settings = choose_settings(device=device, dtype=dtype, head_width=config.hidden_size // config.num_attention_heads)
    if threads is None:
        # Several streams would cut a call into small batches and queue on one GPU all the same.
        threads = default_threads() if settings.device == "cpu" else 1
    return Predictor(opened, settings, threads=threads)
