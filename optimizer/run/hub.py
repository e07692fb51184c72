"""Push a finished result to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from prumux.optimizer.base.errors import MissingError, UsageError
from prumux.optimizer.base.paths import hub_cure
from prumux.optimizer.certificate.kept_answers import FILE as ANSWERS

from .workspace import RESUME, finished

_REPO = re.compile(r"[A-Za-z0-9]([\w-]|\.(?!\.))*/[A-Za-z0-9]([\w-]|\.(?!\.)){0,95}")


def push_to_hub(
    folder: str | Path, repo: str, *, private: bool = True, answers: bool = False
) -> str:
    """Push a result folder to a model repository. A missing repository is created.

    Args:
        folder: a result folder of `prumux-opt`.
        repo: `owner/name`.
        private: True = a new repository is private. An existing repository does not change.
        answers: True = also push `certified_answers.jsonl`, which contains up to 256 texts of
            your data.

    Returns:
        The address of the repository.

    Raises:
        UsageError: the folder contains no finished result, or `repo` is no `owner/name`.
        MissingError: the hub cannot be reached, or refuses the push.

    Example:
        >>> prumux.push_to_hub("my-model-prumux", "me/my-model-prumux")  # doctest: +SKIP
        'https://huggingface.co/me/my-model-prumux'
    """
    check_repo(repo)
    if finished(Path(folder)) is None:
        raise UsageError(
            f"'{folder}' holds no finished result\n"
            "give the folder that prumux-opt wrote (--out)"
        )
    from huggingface_hub import HfApi

    left = [f"{RESUME}/**", *([] if answers else [ANSWERS])]
    try:
        api = HfApi()
        found = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=left)
    # All errors of the hub and of the network have the same remedy.
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MissingError(
            f"'{folder}' is finished, but could not be pushed to '{repo}': {said}\n"
            + hub_cure(
                error, "log in with 'hf auth login', then repeat the command with --resume"
            )
        ) from error
    return str(found)


def check_repo(repo: str) -> None:
    """Check the name of a repository.

    Raises:
        UsageError: the name is no `owner/name`.
    """
    if not _REPO.fullmatch(repo):
        raise UsageError(f"'{repo}' is no repository: write owner/name, such as me/my-model")
