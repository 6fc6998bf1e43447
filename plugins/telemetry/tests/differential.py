#!/usr/bin/env python3
"""Compares the exposition parser with prometheus_client's on random pages.

usage: differential.py SCRAPE_BENCH [PAGES [SEED]]

SCRAPE_BENCH is the built example `scrape_bench`. Needs prometheus_client (pip install prometheus_client). It is run by hand:
cargo xtask test has no Python packages.
"""

import json
import math
import random
import subprocess
import sys
import tempfile

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

CHARS = 'abcXYZ019_ ,={}"\\\n\t#\'äß€😀/.:-+'
NUMBERS = ["0", "1", "-1", "1.5", "1e5", "4.9351e-05", "+Inf", "-Inf", "NaN", "123456789012345", "1234567890123456789", "0.1", "5e-324"]


def word(rng, first="abcdefgh_", more="abcdefgh_0123"):
    return rng.choice(first) + "".join(rng.choice(more) for _ in range(rng.randrange(6)))


def value(rng):
    return "".join(rng.choice(CHARS) for _ in range(rng.randrange(12)))


def escape(text):
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def labels(rng, is_open_metrics, extra=()):
    pairs = dict(extra)
    for _ in range(rng.randrange(5)):
        pairs.setdefault("l_" + word(rng), value(rng))
    if not pairs:
        return "" if rng.random() < 0.5 else "{}"
    items = [f'{name}="{escape(text)}"' for name, text in pairs.items()]
    if is_open_metrics:
        return "{" + ",".join(items) + "}"
    separator = rng.choice([",", ", ", " , "])
    end = rng.choice(["", ",", " "])
    return "{" + separator.join(items) + end + "}"


def page(rng, is_open_metrics):
    lines = []
    for n in range(rng.randrange(1, 12)):
        name = f"m{n}_{word(rng)}"
        kind = rng.choice(["counter", "gauge", "none"])
        suffix = "_total" if kind == "counter" else ""
        declared = name if is_open_metrics else name + suffix
        if kind != "none":
            lines.append(f"# TYPE {declared} {kind}")
            if rng.random() < 0.5:
                lines.append(f"# HELP {declared} {escape(value(rng)) if is_open_metrics else 'help'}")
        # One label set each: OpenMetrics refuses a repetition.
        for k in range(rng.randrange(1, 5)):
            number = rng.choice(["0", "1", "2.5", "1e9"]) if kind == "counter" else rng.choice(NUMBERS)
            stamp = ""
            if rng.random() < 0.3:
                stamp = f" {rng.randrange(10**9)}.{rng.randrange(10)}" if is_open_metrics else f" {rng.randrange(10**13)}"
            lines.append(f"{name}{suffix}{labels(rng, is_open_metrics, [('k', str(k))])} {number}{stamp}")
    if is_open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def theirs(text_of_page, is_open_metrics):
    parse = openmetrics if is_open_metrics else text
    for family in parse(text_of_page):
        for sample in family.samples:
            time = None if sample.timestamp is None else round(float(sample.timestamp) * 1000)
            yield sample.name, dict(sample.labels), float(sample.value), time


def main():
    bench, pages = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(2**32)
    compared = 0
    for n in range(pages):
        rng = random.Random(f"{seed} {n}")
        is_open_metrics = rng.random() < 0.5
        content = page(rng, is_open_metrics)
        with tempfile.NamedTemporaryFile("w", suffix=".txt", newline="") as file:
            file.write(content)
            file.flush()
            done = subprocess.run([bench, "--dump", file.name], capture_output=True, text=True, check=False)
        where = f"seed {seed}, page {n}:\n{content}"
        if done.returncode != 0:
            sys.exit(f"refused: {done.stderr}\n{where}")
        ours = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
        other = list(theirs(content, is_open_metrics))
        if len(ours) != len(other):
            sys.exit(f"{len(ours)} samples and not {len(other)}\n{where}")
        for (name, pairs, number, time), sample in zip(ours, other):
            number = float(number)
            same_number = number == sample[2] or math.isnan(number) and math.isnan(sample[2])
            if (name, pairs) != sample[:2] or not same_number or time != sample[3]:
                sys.exit(f"{(name, pairs, number, time)}\nand not\n{sample}\n{where}")
            compared += 1
    print(f"seed {seed}: {pages} pages, {compared} samples, no difference")


if __name__ == "__main__":
    main()
