"""Tasks: what the labels of a model mean. One task is one file here.

`Task` (`task.py`) lists what a task has to say: how its labels are read from a data column,
how logits become predictions and answers, its metrics and how a certificate bounds their loss,
its training losses and Fisher information, and when two engines give the same answers.

To add a task, add a file with a subclass of `Task`: `registry.py` finds it. Copy the file that
is nearest, and try the new task in `tests/tasks/test_laws.py`. `metrics.py`, `labels.py`,
`losses.py`, `fisher.py` and `prediction.py` hold arithmetic that several tasks share.
"""
