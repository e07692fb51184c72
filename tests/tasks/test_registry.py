"""Tasks are found in their folder, and read from a model's config.json."""

import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.tasks import registry
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.embedding import SentenceEmbedding
from prumux.optimizer.tasks.multilabel import MultiLabel
from prumux.optimizer.tasks.question_answering import QuestionAnswering
from prumux.optimizer.tasks.ranking import Ranking
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens

TYPES = registry.task_types()


def config(task: type[Task], labels: int = 3, **fields: Any) -> dict[str, Any]:
    names = {str(i): f"name {i}" for i in range(labels)}
    return {"architectures": [f"Bert{task.head}"], "id2label": names, **fields}


def test_every_task_is_found_once() -> None:
    classes = (Classification, SentenceEmbedding, MultiLabel, QuestionAnswering)
    assert (*classes, Ranking, Regression, Tokens) == TYPES
    assert len({x.name for x in TYPES}) == len(TYPES)
    assert len({(x.kind, x.problem) for x in TYPES}) == len(TYPES)


@pytest.mark.parametrize("task", [x for x in TYPES if x is not Ranking])
def test_what_is_written_is_read(task: type[Task]) -> None:
    labels = ("a",) if task is Regression else ("a", "b") if task.named_outputs else ()
    given = task(labels)
    written = {
        "architectures": [task.own_class()],
        "problem_type": task.problem_type,
        "id2label": {str(i): name for i, name in enumerate(labels)},
    }
    assert registry.from_own_config(written, len(labels)) == given
    assert registry.from_config(written) == given
    assert registry.from_report(given.to_json()) is task


@pytest.mark.parametrize(
    ("head", "problem", "labels", "task"),
    [
        (Classification, None, 2, Classification),
        (Classification, "single_label_classification", 1, Classification),
        (Classification, None, 1, Regression),
        (Classification, "multi_label_classification", 3, MultiLabel),
        (Classification, "multi_label_classification", 1, MultiLabel),
        (Classification, "regression", 1, Regression),
        (Tokens, None, 1, Tokens),
        (Tokens, "regression", 3, Tokens),
    ],
)
def test_the_task_follows_from_head_problem_and_labels(
    head: type[Task], problem: str | None, labels: int, task: type[Task]
) -> None:
    found = registry.from_config(config(head, labels, problem_type=problem))
    assert found == task(tuple(f"name {i}" for i in range(labels)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["BertForMaskedLM"]},
            "BertForMaskedLM' has no classification",
        ),
        (
            {"architectures": ["BertModel"]},
            "AutoModelForSequenceClassification or AutoModelForTokenClassification$",
        ),
        (
            {"problem_type": "ranking"},
            "'ranking' is not supported yet",
        ),
        ({"id2label": ["a"]}, "id2label is a list, not a map of names"),
        ({"id2label": {"a": "b"}}, "id2label names 'a', ids are 0, 1, 2"),
        ({"id2label": {"0": "a", "1": "a"}}, "labels 0 and 1 are both 'a'"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000, .* to 100000"),
        ({"id2label": None, "num_labels": True}, "num_labels is True"),
    ],
)
def test_what_cannot_be_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        registry.from_config(config(Classification) | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["Bert"]}, "architectures is"),
        ({"id2label": {"0": "a"}}, "1 names of 3 labels"),
        ({"id2label": {"0": "a", "1": 2, "2": "c"}}, "label 1 is 2, not a text"),
    ],
)
def test_an_own_config_that_is_damaged(fields: dict[str, Any], message: str) -> None:
    given = config(Tokens) | {"architectures": [Tokens.own_class()]} | fields
    with pytest.raises(ValueError, match=message):
        registry.from_own_config(given, 3)


NEW_TASK = """
from dataclasses import dataclass
from prumux.optimizer.tasks.classification import Classification

@dataclass(frozen=True)
class Ordinal(Classification):
    name = problem = problem_type = "ordinal"

    @classmethod
    def reads(cls, problem_type, labels):
        return problem_type == cls.problem_type
"""


def test_a_new_task_is_a_new_file(tmp_path: Path) -> None:
    package = tmp_path / "prumux"
    (package / "optimizer").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "optimizer" / "__init__.py").touch()
    given = Path(registry.__file__).parents[1]
    for folder in ("base", "tasks"):
        copytree(given / folder, package / "optimizer" / folder)
    (package / "optimizer" / "tasks" / "ordinal.py").write_text(NEW_TASK)
    code = f"""
from prumux.optimizer.tasks.registry import from_config, task_types
assert len(task_types()) == {len(TYPES) + 1}
found = from_config({{"problem_type": "ordinal"}})
assert type(found).__name__ == "Ordinal", found
"""
    environment = {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
