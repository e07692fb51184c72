"""The README of a Triton model repository: how to start the server and call the model."""

from __future__ import annotations

from prumux.export.graph.graph import OUTPUT, input_names
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.tasks.task import Task

from .packer import TENANT

IMAGE = "nvcr.io/nvidia/tritonserver:25.06-py3"
START = """\
# A Triton model repository, written by prumux

    docker run --rm --shm-size=1g -p 8000:8000 -p 8001:8001 \\
      -v "$PWD:/models:ro" {image} \\
      tritonserver --model-repository=/models

Run the command in this folder. On a machine with NVIDIA GPUs add `--gpus all` after `--rm`.
Use the release of the image that you need{plan}.
`curl localhost:8000/v2/models/{name}/ready` succeeds when the model is ready.

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
LENGTHS = """
Triton batches requests of equal length only. Pad to a multiple of, say, 16 tokens
(`pad_to_multiple_of=16`), so that it can batch more of them.
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


def guide(encoder: Encoder, task: Task, name: str, rows: int, plan: bool = False) -> str:
    """The text of the README.

    Args:
        encoder: sizes of the model.
        task: names of the labels.
        name: name of the Triton model that clients call.
        rows: most rows of a request.
        plan: True = the engine is a TensorRT plan.
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
        "output": OUTPUT,
        "shape": f"[rows, {'' if encoder.pooled else 'tokens, '}{encoder.labels}]",
        "labels": ", ".join(" ".join(x.split()) for x in task.labels),
        "tenant": TENANT,
        "plan": ": its TensorRT must be the one that built `model.plan`" if plan else "",
    }
    parts = [START, CALL, MIXED if encoder.slots > 1 else LENGTHS]
    return "".join(part.format(**values) for part in parts)
