"""The README of a Triton model repository: how to start the server and call the model."""

from __future__ import annotations

from prumux.export.graph.graph import input_names, output_name
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.tasks.task import Task

from .packer import TENANT

IMAGE = "nvcr.io/nvidia/tritonserver:25.06-py3"
COMMAND = "tritonserver --model-repository=/models"
PYTHON_COMMAND = f'sh -c "pip install onnxruntime && {COMMAND}"'
START = """\
# A Triton model repository, written by prumux

    docker run --rm --shm-size=1g -p 8000:8000 -p 8001:8001 \\
      -v "$PWD:/models:ro" {image} \\
      {command}

Run the command in this folder. On a machine with NVIDIA GPUs add `--gpus all` after `--rm`.
Use the release of the image that you need{plan}.
`curl localhost:8000/v2/health/ready` succeeds when the model is ready.
"""
WHEEL = """
Without Docker, on Linux (the server of this wheel has Triton's Python backend only):

    pip install --no-deps --target ~/triton-server nvidia-pytriton 'numpy<2'
    python -m prumux.export.triton.server . --wheel ~/triton-server
"""
CALLING = """
## Calling it

`{name}` takes {inputs}:
int64 [rows, tokens], at most {rows} rows of at most {tokens} tokens a request.
It returns `{output}`: float32 {shape}, with the labels in this order: {labels}.
"""
CALL = """
```python
# pip install 'tritonclient[http]' transformers
import numpy as np
import tritonclient.http as triton
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast.from_pretrained("..")  # the folder that this one lies in
client = triton.InferenceServerClient("localhost:8000")
texts = ["a charming journey", "dull"]
tokens = tokenizer(
    texts, padding=True, truncation=True, max_length={tokens}, return_tensors="np",
    return_token_type_ids={types},
)
inputs = []
for name in {names}:
    values = tokens[name].astype(np.int64)
    inputs.append(triton.InferInput(name, list(values.shape), "INT64"))
    inputs[-1].set_data_from_numpy(values)
logits = client.infer("{name}", inputs).as_numpy("{output}")
```
"""
PLAIN = """
## Requests of unequal length

`{name}` collects the rows of all requests that arrive within the queue delay, sorts them by
length, and runs rows of similar length together. Clients need not pad to a common length, and
a request that the model cannot take fails alone. More concurrent callers, or a longer
`max_queue_delay_microseconds` in `{name}/config.pbtxt`, fill larger runs.
"""
DIRECT = """
The engine, `{name}_engine`, takes the same inputs. Calling it saves a millisecond or so where
requests come one at a time; Triton joins requests to it of equal length only.
"""
CASCADE = """
## Two engines

`{name}_engine` answers every row. `{name}` gives the rows whose two best logits differ by less
than `threshold` to `{name}_second` (`parameters` in `{name}/config.pbtxt`), and returns its
answers for them. With a `max_share` below 1 it gives at most this share of a run. Do not call
the engines directly.
"""
MIXED = """
## Mixed rows

The engine (`{name}_engine`) runs {n} rows in one forward pass; do not call it directly.
`{name}` takes any number of rows. It collects the rows of all requests that arrive within the
queue delay, puts rows of similar length into groups of {n}, fills an incomplete group with
rows of the same group, and averages the logits of repeated rows. The other rows of a group
change a row's logits a little. To keep rows of different tenants apart, give the tenant of
each row. Rows without a tenant are grouped among themselves only:

```python
tenant = triton.InferInput("{tenant}", [len(texts), 1], "BYTES")
tenant.set_data_from_numpy(np.array([["customer 7"]] * len(texts), dtype=object))
logits = client.infer("{name}", [*inputs, tenant]).as_numpy("{output}")
```

More concurrent callers, or a longer `max_queue_delay_microseconds` in `{name}/config.pbtxt`,
fill more groups.
"""
ERRORS = """
## Errors

| client sees | reason |
|---|---|
| HTTP 400, gRPC INVALID_ARGUMENT | a type, shape, length or token id that is not accepted |
| HTTP 500, gRPC INTERNAL | the engine failed |
| gRPC CANCELLED | the client cancelled the request before it was run |
"""


def guide(  # noqa: PLR0917 - the facts of one repository
    encoder: Encoder, task: Task, name: str, rows: int, backend: str, cascade: bool = False
) -> str:
    """Write the text of the README.

    Args:
        encoder: sizes of the model.
        task: names of the labels.
        name: name of the Triton model that clients call.
        rows: largest number of rows of a request.
        backend: the engine's Triton backend.
        cascade: True if a second engine answers unsure rows.
    """
    names = input_names(encoder)
    values = {
        "image": IMAGE,
        "name": name,
        "n": encoder.slots,
        "rows": rows,
        "tokens": encoder.most_tokens,
        "inputs": ", ".join(f"`{x}`" for x in names),
        "names": names,
        "types": encoder.token_types > 0,
        "output": output_name(encoder),
        "shape": f"[rows, {'' if encoder.pooled else 'tokens, '}{encoder.labels}]",
        "labels": ", ".join(" ".join(x.split()) for x in task.labels),
        "tenant": TENANT,
        "plan": ": its TensorRT must be the one that built `model.plan`"
        if backend == "tensorrt"
        else "",
        "command": PYTHON_COMMAND if backend == "python" else COMMAND,
    }
    rows_part = MIXED if encoder.slots > 1 else PLAIN
    engines = [CASCADE] if cascade else [DIRECT] if encoder.slots == 1 else []
    parts = [START, CALLING, CALL, rows_part, *engines, ERRORS]
    if backend == "python":
        parts.insert(1, WHEEL)
    return "".join(part.format(**values) for part in parts)
