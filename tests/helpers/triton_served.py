"""Models that tests serve with a real Triton server, and clients that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from prumux.export.graph import graph_file
from prumux.export.graph.graph import build
from prumux.export.runtime.grouping import PredictionJob
from prumux.export.runtime.grouping import answer as answer_job
from prumux.export.runtime.ort import OrtEngine
from prumux.export.triton.repository import Serving, write_bundle
from prumux.export.triton.server import TritonServer
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from tests.helpers.factory import multiplexed, random_model
from tests.helpers.tritonserver import request

N = 3
SLOTS = {"plain": 1, "mixed": N, "tokens": N, "roberta": 1}


def served_model(name: str) -> Model:
    model = random_model(
        family="roberta" if name == "roberta" else "bert",
        heads=(4, 4),
        hidden=16,
        labels=3,
        task="token-classification" if name == "tokens" else "text-classification",
    )
    return multiplexed(model, n=N, at=1) if SLOTS[name] > 1 else model


def write_served(name: str, folder: Path) -> Path:
    """A repository that holds one model."""
    model = served_model(name)
    graph_file.save(build(model), folder)
    serving = Serving(name, max_batch=9, length=12, backend="python")
    write_bundle(model.encoder, model.task, folder / "model.onnx", folder / "triton", serving)
    return folder / "triton"


class TritonClient:
    """One of Triton's clients: HTTP or gRPC."""

    def __init__(self, server: TritonServer, kind: str) -> None:
        if kind == "http":
            import tritonclient.http as module

            self.client: Any = module.InferenceServerClient(server.http, concurrency=4)
        else:
            import tritonclient.grpc as module

            self.client = module.InferenceServerClient(server.grpc)
        self.module: Any = module

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def inputs(self, values: dict[str, NDArray[Any]]) -> list[Any]:
        kinds = {"int64": "INT64", "int32": "INT32", "object": "BYTES"}
        found = []
        for name, x in values.items():
            kind = kinds[str(x.dtype)]
            found.append(self.module.InferInput(name, list(x.shape), kind))
            found[-1].set_data_from_numpy(x)
        return found

    def infer(self, name: str, values: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Logits."""
        found: NDArray[Any] = self.client.infer(name, self.inputs(values)).as_numpy("logits")
        return found


def given(
    name: str, rows: list[list[int]], tenants: list[str] | None = None, width: int = 0
) -> dict[str, NDArray[Any]]:
    """The inputs of one request."""
    values = request(rows, tenants, width, served_model(name).encoder.pad_id).inputs
    if not served_model(name).encoder.token_types:
        del values["token_type_ids"]
    return values


def alone(repository: Path, name: str, rows: list[list[int]]) -> list[NDArray[Any]]:
    """What our own predictor gives for the rows of one request: [C] or [T, C] each."""
    ids = tuple(map(tuple, rows))
    encoder = served_model(name).encoder
    types = Ragged.of((0,) * len(x) for x in ids) if encoder.token_types else None
    encoded = Encoded(Ragged.of(ids), types, None, encoder.pad_id)
    engine = OrtEngine(repository / f"{name}_engine" / "1" / "model.onnx", 1)
    return list(answer_job(engine, SLOTS[name], PredictionJob(encoded, 9)))
