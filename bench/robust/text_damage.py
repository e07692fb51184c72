"""Damage to pipeline texts, target texts and the values of other options."""

from __future__ import annotations

from random import Random

SOUND = (
    "prune{sparsity=0.5},slice",
    "pool-early,prune{sparsity=0.5 of=macs},slice,reconstruct",
    "prune{sparsity=0.3|0.6},slice,reconstruct,distill{epochs=0.1}",
    "prune-heads{ratio=0.5},prune-ffn{ratio=0.25},slice",
    "prune-layers{attention=1 ffn=1},slice",
    "prune-hidden{keep=16},slice",
    "mux{n=2 at=1},distill{epochs=0.1}",
    "pool-early,prune{speedup=2},slice,mux{n=2|3},distill{epochs=0.1}",
    "learn-masks{sparsity=0.5 epochs=0.1},slice",
    "warm-up{epochs=0.1},mux{n=2}",
)
TARGETS = (
    "onnx",
    "onnx{precision=fp32}",
    "onnx{precision=int8}",
    "onnx{precision=auto opset=18}",
)
NUMBERS = (
    *(
        "nan",
        "inf",
        "-1",
        "0",
        "1",
        "1e999",
        "1e-999",
        "-0.0",
        "0x10",
        "1_000",
        "٣",
        "½",
        "+1",
    ),
    *(
        "9" * 400,
        "0." + "0" * 400 + "1",
        "1,2",
        "1|2",
        "true",
        "",
        "none",
        "''",
        '"x"',
        "0.5.5",
    ),
)
CHARACTERS = "{}=|,.-+ \t\n\x00'\"\\()[]é字\u200b\u202e;#$`0a"
BUDGETS = (
    "2%",
    "2%rel",
    "0.5",
    "0%",
    "100%",
    "1000%",
    "-1%",
    "nan%",
    "1e400%",
    "%",
    "2 %",
    "2\uff05",
    "2%%",
    "inf",
    "",
    "2%abs",
)
OTHERS = {
    "--metric": (
        "accuracy",
        "f1",
        "macro-f1",
        "agreement",
        "pearson",
        "",
        "x",
        "Accuracy",
        "\ud800",
    ),
    "--length": ("1", "2", "40", "41", "0", "-1", "9999999999", "1.5", "x", "٣"),
    "--batch": ("1", "3", "999999", "0", "-1", "x", "1e3"),
    "--seed": ("0", "-1", "9223372036854775808", "x", "1e5", ""),
    "--time-limit": ("1s", "0s", "-1m", "1e9h", "nan", "99999999999999999999h", "m", ""),
    "--labels": (
        "0=good",
        "0=x",
        "9=good",
        "=good",
        "good=",
        "0=good=bad",
        "",
        "a b=good",
        "1=bad 0=bad",
    ),
    "--columns": (
        "text=label",
        "label=text",
        "text_a=text",
        "x=y",
        "label=x",
        "=",
        "text=",
        "text_a=text text_b=text",
    ),
    "--device": ("cpu", "cuda", "cuda:99", "gpu", "", "cuda:-1", "cpu:0"),
    "--workers": ("0", "-1", "2", "1000000", "ray://", "ray://x:y", "x", ""),
    "--effort": ("quick", "standard", "thorough", "Quick", ""),
    "--out": (
        "result",
        ".",
        "..",
        "",
        "/dev/null/x",
        "a" * 300,
        "x\x00y",
        "../model",
        "../data",
        "~",
    ),
    "--train": (
        "",
        ".",
        "nothing.csv",
        "../model/config.json",
        "../model",
        "a" * 5000,
        "\x00",
    ),
}
"""Valid and faulty values of the options except pipelines and targets."""


def damaged(random: Random, text: str) -> str:
    """Change some characters, numbers or parts of a text."""
    for _ in range(random.choice([1, 1, 2, 4])):
        at, kind = random.randrange(len(text) + 1), random.randrange(8)
        end = min(len(text), at + random.choice([1, 1, 3, 10]))
        if kind == 0:
            text = text[:at] + text[end:]
        elif kind == 1:
            text = text[:at] + random.choice(CHARACTERS) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at:end] * random.choice([2, 50]) + text[end:]
        elif kind == 3:
            parts = text.split(",")
            random.shuffle(parts)
            text = ",".join(parts)
        elif kind == 4:
            text = ",".join([text] * random.choice([2, 30]))[:20_000]
        elif kind == 5 and "=" in text:
            at = random.choice([i + 1 for i, x in enumerate(text) if x == "="])
            end = min((text.find(x, at) for x in " }|" if text.find(x, at) > 0), default=at)
            text = text[:at] + random.choice(NUMBERS) + text[end:]
        elif kind == 6:
            text = text[:at] + random.choice(SOUND) + text[at:]
        else:
            text = text.replace(
                *random.choice([("{", "{{"), ("=", "=="), ("-", "_"), (",", ", "), ("e", "E")])
            )
    return text


def pipeline(random: Random) -> list[str]:
    """Make options with a damaged pipeline text."""
    text = damaged(random, random.choice(SOUND))
    more = ["--budget", "20%"] if random.random() < 0.5 else []
    return [f"--passes={text}", *more]


def target(random: Random) -> list[str]:
    """Make options with a damaged target text."""
    return [f"--target={damaged(random, random.choice(TARGETS))}", "--passes", SOUND[0]]


def option(random: Random) -> list[str]:
    """Make options with one or two odd values."""
    found = (
        ["--passes", random.choice(SOUND)] if random.random() < 0.6 else ["--budget", "20%"]
    )
    if random.random() < 0.3:
        return [
            f"--budget={random.choice(BUDGETS)}",
            *random.choice([[], ["--effort=standard"]]),
        ]
    for name in random.sample(sorted(OTHERS), random.choice([1, 1, 2])):
        value = random.choice(OTHERS[name])
        many = name in ("--labels", "--columns")
        found += [name, *value.split(" ")] if many else [f"{name}={value}"]
    return found


TEXTS = {"pipeline text": pipeline, "target text": target, "options": option}
