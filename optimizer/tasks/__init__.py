"""Tasks: the meanings of a model's labels. Each task is one file in this folder.

`Task` (`task.py`) is the interface. A task defines:

- reading of labels from a data column;
- predictions and answers from logits;
- metrics, and the statistic that bounds their loss in a certificate;
- training losses and Fisher information;
- a test for equal answers of two engines.

To add a task, add a file with a subclass of `Task`; `registry.py` finds it. Copy the file of
the most similar task, and try the new task in `tests/tasks/test_laws.py`. `metrics.py`,
`labels.py`, `losses.py`, `fisher.py` and `prediction.py` contain functions that tasks share.
"""
