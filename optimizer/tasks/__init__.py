"""Tasks: what labels mean. One file a task; adding a file here adds the task.

`Task` (`task.py`) lists what a task has to say. `registry.py` finds the tasks and reads them
from a model's `config.json`. `metrics.py`, `labels.py`, `losses.py`, `fisher.py` and
`prediction.py` hold the arithmetic that several tasks share.
"""
