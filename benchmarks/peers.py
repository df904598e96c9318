"""Measure EdgeShard beside llama.cpp and onnxruntime-genai in one paired run.

Build the peers first with `benchmarks/build_peers.py`. Every round runs each system once, in an
order that moves on by one from round to round, each in a fresh process with the same number of
threads, so a machine that drifts does so for all. Two things are measured: `prefill` of a
prompt, and `decode` of tokens that follow a context of a given length. The prompts of the peers
are random tokens; loading and warm-up are not timed. Ratios are taken within a round, against
the variant with the highest median over all rounds; the table shows the median of the ratios.
All samples go to the JSON file after each round, and the tables to standard output.

Example:
    python benchmarks/peers.py --peers build/peers --store STORE --rounds 5 --json peers.json
"""

import argparse
import importlib
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PROMPTS = (37, 1900)
CONTEXTS = (64, 1000, 1900)
GENERATED = 64
OURS = "EdgeShard"
LLAMA = "llama.cpp"
GENAI = "onnxruntime-genai"
# From `{system, variant, kind, tokens}` to the tokens per second of each round.
Key = tuple[str, str, str, int]
Table = dict[Key, dict[int, float]]


class Row(NamedTuple):
    """One measured speed; `tokens` is the length of the prompt, or of the context at the start."""

    system: str
    variant: str
    kind: str
    tokens: int
    tokens_per_second: float


def output(command: Sequence[str | Path]) -> Any:
    """Run a command and return the JSON it prints, or exit with what it said."""
    line = [str(part) for part in command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    try:
        done.check_returncode()
        return json.loads(done.stdout)
    except (subprocess.CalledProcessError, json.JSONDecodeError) as error:
        raise SystemExit(f"{shlex.join(line)}\n{done.stderr[-2000:]}\n{error}") from error


def run_ours(command: Sequence[str]) -> Iterator[Row]:
    """Run our benchmark; rows that share name, precision and length become their median."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in output(command)["rows"]:
        tokens = row["context"] if row["kind"] == "decode" else row["prompt"]
        key = (f"{row['name']} {row['precision']}", row["kind"], int(tokens))
        found.setdefault(key, []).append(float(row["tokens_per_second"]))
    for (variant, kind, length), speeds in found.items():
        yield Row(OURS, variant, kind, length, statistics.median(speeds))


def run_llama(bench: Path, model: Path, attention: int, threads: int) -> Iterator[Row]:
    """Run llama-bench for one model file, with its fused attention (1) or the plain one (0)."""
    variant = f"{model.stem} fa={attention}"
    common: list[str | Path] = [bench, "-m", model, "-t", str(threads), "-fa", str(attention)]
    common += ["-r", "1", "-o", "json"]
    for row in output([*common, "-p", ",".join(map(str, PROMPTS)), "-n", "0"]):
        yield Row(LLAMA, variant, "prefill", row["n_prompt"], row["avg_ts"])
    depths = ",".join(map(str, CONTEXTS))
    for row in output([*common, "-p", "0", "-n", str(GENERATED), "-d", depths]):
        yield Row(LLAMA, variant, "decode", row["n_depth"], row["avg_ts"])


def run_genai(python: Path, model: Path, threads: int) -> Iterator[Row]:
    """Run this file for one model folder inside the environment that has onnxruntime-genai."""
    script = Path(__file__).resolve()
    for kind, length, speed in output(
        [python, script, "--worker", model, "--threads", str(threads)]
    ):
        yield Row(GENAI, model.name, kind, length, speed)


def genai_worker(model_folder: Path, threads: int) -> None:
    """Time onnxruntime-genai and print `[kind, tokens, tokens per second]` rows.

    A prefill ends with its first token, a decode step runs the model and picks a token. The end
    of the text is forbidden, so that every run has the same length.
    """
    og: Any = importlib.import_module("onnxruntime_genai")
    config = og.Config(str(model_folder))
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    vocabulary = json.loads((model_folder / "genai_config.json").read_text())["model"]["vocab_size"]
    source = random.Random(0)

    def measure(length: int, steps: int) -> float:
        """Return the seconds of `steps` decode steps, or of the prefill if there are none."""
        tokens = [source.randrange(vocabulary) for _ in range(length)]
        parameters = og.GeneratorParams(model)
        total = length + steps + 1
        parameters.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        if steps:
            start = time.perf_counter()
            for _ in range(steps):
                generator.generate_next_token()
        seconds = time.perf_counter() - start
        if generator.token_count() != total:
            raise SystemExit(f"{generator.token_count()} tokens instead of {total}")
        return seconds

    rows: list[tuple[str, int, float]] = []
    for length in PROMPTS:
        measure(length, 0)  # warm-up, as llama-bench does
        rows.append(("prefill", length, length / measure(length, 0)))
    rows += [("decode", length, GENERATED / measure(length, GENERATED)) for length in CONTEXTS]
    print(json.dumps(rows))


def ratio(table: Table, ours: Key, system: str) -> str:
    """Return two table cells: a peer's fastest variant, and our speed as a multiple of it."""
    rivals = [key for key in table if key[0] == system and key[2:] == ours[2:]]
    if not rivals:
        return "- | -"
    best = max(rivals, key=lambda key: statistics.median(table[key].values()))
    paired = [s / table[best][n] for n, s in table[ours].items() if n in table[best]]
    speed = statistics.median(table[best].values())
    return f"{best[1]}: {speed:.1f} | {statistics.median(paired):.2f}"


def markdown(table: Table) -> str:
    """Return the two tables: every row measured, and ours against the fastest peers."""
    order = sorted(table, key=lambda key: (key[2], key[3], -statistics.median(table[key].values())))
    lines = ["| test | system | variant | tok/s, median | min | max |", "|---|---|---|--:|--:|--:|"]
    for key in order:
        speeds = table[key].values()
        spread = f"{statistics.median(speeds):.1f} | {min(speeds):.1f} | {max(speeds):.1f}"
        lines.append(f"| {key[2]} {key[3]} | {key[0]} | {key[1]} | {spread} |")
    lines += ["", f"| test | {OURS} | tok/s | fastest {LLAMA} | ratio | fastest {GENAI} | ratio |"]
    lines.append("|---|---|--:|---|--:|---|--:|")
    for key in (key for key in order if key[0] == OURS):
        cells = " | ".join(ratio(table, key, system) for system in (LLAMA, GENAI))
        speed = statistics.median(table[key].values())
        lines.append(f"| {key[2]} {key[3]} | {key[1]} | {speed:.1f} | {cells} |")
    return "\n".join(lines)


def report(table: Table, about: dict[str, Any]) -> str:
    """Return the JSON report: what ran, and for each row its samples, median and spread."""
    rows = []
    for (system, variant, kind, tokens), samples in table.items():
        row = {"system": system, "variant": variant, "kind": kind, "tokens": tokens}
        speeds = list(samples.values())
        spread = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
        rows.append({**row, **spread, "rounds": samples})
    return json.dumps({**about, "rows": rows}, indent=2) + "\n"


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release()}


def main() -> None:
    """Run the rounds, or one measurement inside the onnxruntime-genai environment."""
    parser = argparse.ArgumentParser(description="Compare EdgeShard with its peers.")
    parser.add_argument(
        "--peers", type=Path, default=Path(), help="the --out folder of build_peers.py"
    )
    parser.add_argument("--store", default="", help="what {store} stands for in --ours")
    parser.add_argument("--ours", default="esc bench --store {store} --json", help="our command")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="also {threads} in --ours")
    parser.add_argument("--json", type=Path, default=Path("peers.json"), help="all samples")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        genai_worker(args.worker, args.threads)
        return
    peers, threads = args.peers.resolve(), args.threads
    fields = {"store": args.store, "threads": threads}
    command = [part.format_map(fields) for part in shlex.split(args.ours)]
    jobs: list[Callable[[], Iterator[Row]]] = [partial(run_ours, command)]
    bench = peers / "llama-build" / "bin" / "llama-bench"
    for model in sorted((peers / "models").glob("*.gguf")):
        jobs += [partial(run_llama, bench, model, attention, threads) for attention in (0, 1)]
    python = peers / "genai-venv" / "bin" / "python"
    models = sorted((peers / "genai").glob("*/genai_config.json"))
    jobs += [partial(run_genai, python, model.parent, threads) for model in models]
    about = {"machine": machine(), "threads": threads, "ours": args.ours, "rounds": args.rounds}
    about["peers"] = json.loads((peers / "peers.json").read_text(encoding="utf-8"))
    table: Table = {}
    for number in range(args.rounds):
        shift = number % len(jobs)
        for job in jobs[shift:] + jobs[:shift]:
            for row in job():
                table.setdefault(row[:4], {})[number] = row.tokens_per_second
                print(f"round {number + 1}:", *row, file=sys.stderr, flush=True)
        args.json.write_text(report(table, about), encoding="utf-8")
    print(markdown(table))


if __name__ == "__main__":
    main()
