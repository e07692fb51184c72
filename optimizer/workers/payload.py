"""What is sent to a worker and what comes back: entries of a store, so no disk is shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prumux.optimizer.base.environment import cpu, versions
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.evaluator import Bench, nowhere

KINDS = (".json", ".safetensors")
OWN = ("trial-", "model-", "predictions-", "minutes-", "shape-")
RUN = ("run.json", "measured.json", "precision.json", "threads.json")
"""Entries that no other candidate needs."""


@dataclass(frozen=True)
class Host:
    """What a worker must have in common with the process that it works for."""

    threads: int
    """A trial's: sums of floats depend on it in the last bit."""
    versions: Mapping[str, str]
    cpu: str | None
    """Where answers depend on it: int8 is computed differently by different processors."""

    @classmethod
    def of(cls, bench: Bench, threads: int) -> Host:
        """Of this process."""
        return cls(threads, versions(), None if bench.targets[0].exact else cpu())

    def differs(self) -> str:
        """Why the machine that this runs on will not do; empty if it will."""
        mine, processor = versions(), cpu()
        for name in sorted(self.versions.keys() | mine.keys()):
            wanted, found = self.versions.get(name, "no"), mine.get(name, "no")
            if wanted != found:
                return f"the worker has {name} {found}, this process {wanted}"
        if self.cpu not in (None, processor):
            return f"the worker's processor is {processor}, not {self.cpu}: int8 may differ"
        return ""


def packed(bench: Bench) -> Bench:
    """The bench as it is sent: without a folder, silent, and not allowed to time anything."""
    ctx: Context = replace(
        bench.ctx, store=Store(), cache=Store(), progress=Progress(), may_time=False
    )
    return replace(bench, ctx=ctx, record=nowhere)


def needed(bench: Bench, pipeline: Pipeline) -> dict[str, Path]:
    """Entries of the bench's store that a candidate shares with others, by file name.

    Scores and choices, so that they are the same everywhere and not computed again; models
    that the pipeline begins with; the dense model's predictions.
    """
    lengths = range(1, len(pipeline.passes) + 1)
    models = tuple(f"model-{key(Pipeline(pipeline.passes[:n]))}" for n in lengths)
    roles = ("select", "certify")
    mine = (*models, *(bench.predictions_name(Pipeline(()), role) for role in roles))
    found = {x.name: x for x in bench.ctx.store.files() if x.suffix in KINDS}
    others = {x for x in found if x.startswith(OWN) and not x.startswith(mine)}
    return {name: found[name] for name in sorted(found.keys() - others - set(RUN))}


def work(
    bench: Bench, kind: str, text: str, files: Mapping[str, bytes], host: Host
) -> dict[str, bytes] | str:
    """Do a job, in a worker.

    Returns:
        New entries of the store, those that say that a trial failed among them; or why the
        job has to be done elsewhere.
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
        bench = bench.with_store(store, nowhere)
        try:
            if kind == "trial":
                bench.trial(pipeline)
            else:
                bench.answer(pipeline)
        except PrumuxError as error:
            if bench.tried(pipeline) is None:  # nothing that is true everywhere
                return str(error).partition("\n")[0]
        return {
            x.name: x.read_bytes()
            for x in store.files()
            if x.suffix in KINDS and x.name not in files
        }
