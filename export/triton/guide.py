"""The README of a Triton bundle: how to start it and how to call it."""

from __future__ import annotations

from prumux.export.graph.graph import OUTPUT, input_names
from prumux.optimizer.model.ir import Encoder
from prumux.optimizer.tasks.task import Task

from .packer import TENANT

IMAGE = "nvcr.io/nvidia/tritonserver:25.06-py3"
START = """\
# A Triton model repository, written by prumux

    docker run --rm --shm-size=1g -p 8000:8000 -p 8001:8001 \\
      -v "$PWD:/models:ro" {image} \\
      tritonserver --model-repository=/models

Run it in this folder, with `--gpus all` after `--rm` on a machine with NVIDIA GPUs, and with
the release of the image that you use{plan}.
`curl localhost:8000/v2/models/{name}/ready` says when it is up.

## Calling it

`{name}` takes {inputs}:
int64 [rows, tokens], at most {rows} rows of at most {tokens} tokens a request.
It gives `{output}`: float32 {shape}, in this order: {labels}.
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
LENGTHS = """
Triton joins requests of equal length only. Pad to a multiple of, say, 16 tokens
(`pad_to_multiple_of=16`) to have more of them joined.
"""
MIXED = """
## Mixed rows

The engine (`{name}_engine`) mixes {n} rows into one forward pass; do not call it yourself.
`{name}` takes any number of rows, collects those of requests that come within the queue delay,
puts rows of like length into groups of {n}, fills a group that stays short with its own rows
and averages their answers. Partners change an answer a little. To keep rows of different
owners apart, say whose each one is; rows without a tenant are mixed among themselves only:

```python
tenant = triton.InferInput("{tenant}", [len(texts), 1], "BYTES")
tenant.set_data_from_numpy(np.array([["customer 7"]] * len(texts), dtype=object))
logits = client.infer("{name}", [*inputs, tenant]).as_numpy("{output}")
```

More callers at once, or a longer `max_queue_delay_microseconds` in `{name}/config.pbtxt`, fill
more slots.
"""


def guide(encoder: Encoder, task: Task, name: str, rows: int, plan: bool = False) -> str:
    """The text; `rows` is the most that a request may hold."""
    names = input_names(encoder)
    told = {
        "image": IMAGE,
        "name": name,
        "n": encoder.slots,
        "rows": rows,
        "tokens": encoder.most_tokens,
        "inputs": ", ".join(f"`{x}`" for x in names),
        "names": names,
        "types": encoder.token_types > 0,
        "output": OUTPUT,
        "shape": f"[rows, {'' if encoder.pooled else 'tokens, '}{encoder.labels}]",
        "labels": ", ".join(" ".join(x.split()) for x in task.labels),
        "tenant": TENANT,
        "plan": ": its TensorRT must be the one that built `model.plan`" if plan else "",
    }
    parts = [START, CALL, MIXED if encoder.slots > 1 else LENGTHS]
    return "".join(part.format(**told) for part in parts)
