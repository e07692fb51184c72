"""The payload of a worker: store entries are sent both ways, so no shared disk is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prumux.optimizer.base.environment import cpu, versions
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.model_store import ModelStore
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.evaluator import Evaluator, no_record

Files = Mapping[str, bytes]
"""Contents of store entries, by file name."""
KINDS = (".json", ".safetensors")
CANDIDATE = ("trial-", "model-", "answers-", "minutes-", "shape-")
"""Prefixes of entries that belong to one candidate."""
RUN = ("run.json", "measured.json", "precision.json", "threads.json")
"""Entries that workers do not need."""


@dataclass(frozen=True)
class Host:
    """Facts that must be the same in a worker and this process, for the same results."""

    threads: int
    """Number of threads of a trial, on which the last bit of a sum of floats depends."""
    versions: Mapping[str, str]
    cpu: str | None
    """The processor, if answers depend on it, as with int8; else None."""

    @classmethod
    def of(cls, evaluator: Evaluator, threads: int) -> Host:
        """The facts of this process."""
        return cls(threads, versions(), None if evaluator.targets[0].exact else cpu())

    def differs(self) -> str:
        """The reason why this machine may give other results; "" = it gives the same."""
        mine, processor = versions(), cpu()
        for name in sorted(self.versions.keys() | mine.keys()):
            wanted, found = self.versions.get(name, "no"), mine.get(name, "no")
            if wanted != found:
                return f"the worker has {name} {found}, this process {wanted}"
        if self.cpu not in (None, processor):
            return f"the worker's processor is {processor}, not {self.cpu}: int8 may differ"
        return ""


def packed(evaluator: Evaluator) -> Evaluator:
    """The evaluator for a worker: without folders, output and timing."""
    ctx: Context = replace(
        evaluator.ctx, store=Store(), cache=Store(), progress=Progress(), may_time=False
    )
    return replace(evaluator, ctx=ctx, record=no_record)


def needed(evaluator: Evaluator, pipeline: Pipeline) -> dict[str, Path]:
    """Store entries that a candidate needs, by file name.

    These are scores and choices that all candidates share, models of the pipeline's prefixes,
    and the given model's predictions.
    """
    models = tuple(
        ModelStore.name(stage.prefix(n))
        for stage in pipeline.stages
        for n in range(1, len(stage.passes) + 1)
    )
    roles = ("select", "certify")
    mine = (*models, *(evaluator.predictor.name(Pipeline(()), role) for role in roles))
    found = {x.name: x for x in evaluator.ctx.store.files() if x.suffix in KINDS}
    others = {x for x in found if x.startswith(CANDIDATE) and not x.startswith(mine)}
    return {name: found[name] for name in sorted(found.keys() - others - set(RUN))}


def work(
    evaluator: Evaluator, kind: str, text: str, files: Mapping[str, bytes], host: Host
) -> Files | str:
    """Compute one item of the queue in a worker process.

    Returns:
        New store entries, also of failed trials; or a text, the reason why the main process
        must compute the item itself.
    """
    import torch

    if reason := host.differs():
        return reason
    torch.set_num_threads(host.threads)
    pipeline = Pipeline.parse(text)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for name, data in files.items():
            store.add(name, data)
        evaluator = evaluator.with_store(store, no_record)
        try:
            if kind == "trial":
                evaluator.trial(pipeline)
            else:
                evaluator.predict_certified(pipeline)
        except PrumuxError as error:
            if (
                evaluator.tried(pipeline) is None
            ):  # the failure is this machine's, not the candidate's
                return str(error).partition("\n")[0]
        return {
            x.name: x.read_bytes()
            for x in store.files()
            if x.suffix in KINDS and x.name not in files
        }
