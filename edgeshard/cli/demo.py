"""`esc demo`: the whole way on this machine, from a checkpoint to text over three stages."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

QUESTION = "What is the capital of France?"
NAME = "smollm2-135m-int4"
MEASURED_RUNS = 5


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where everything goes; kept for a next run.")
    ] = Path(".demo"),
    prompt: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    context: Annotated[int, typer.Option(min=256, help="Positions of a sequence.")] = 2048,
) -> None:
    """Compile SmolLM2, start three agents with small budgets, profile, plan, deploy and answer.

    A second run reuses what is in the stores. Ctrl-C ends every process.
    """
    from edgeshard.artifacts.store import Store
    from edgeshard.chain_bench import measured_ms
    from edgeshard.cli.compile import run_compile
    from edgeshard.cli.deploy import Narrator
    from edgeshard.local_run import (
        DEFAULT_SHA256,
        default_checkpoint,
        existing_model,
        running_chain,
    )
    from edgeshard.planner import plan_table
    from edgeshard.runtime.client import Client

    started = time.perf_counter()
    console = Console(highlight=False)

    def step(text: str) -> None:
        clock = f"[bold cyan]{time.perf_counter() - started:6.1f} s[/]"
        console.print(f"{clock} {escape(text)}", soft_wrap=True)

    def detail(text: str) -> None:
        console.print(f"         [dim]{escape(text)}[/]", soft_wrap=True)

    checkpoint = default_checkpoint()
    store = Store(folder / "store")
    known = existing_model(store, NAME, f"sha256:{DEFAULT_SHA256}", "int4")
    if known is None:
        step(f"compiling {checkpoint.name} to int4")
        compiled = run_compile(checkpoint, store, "int4", "ort", NAME)
        known = compiled.manifest, compiled.blob
    else:
        step(f"model {NAME} reused from {store.root}")
    model, blob = known
    with running_chain(
        folder,
        store,
        model,
        blob,
        context=context,
        on_step=step,
        on_detail=detail,
        on_deploy=Narrator(),
        on_plan=lambda plan: console.print(plan_table(plan), markup=False, soft_wrap=True),
    ) as running:
        moved = running.deployment
        step(
            f"{moved.sent_bytes / 1e6:.1f} MB sent to the devices, "
            f"{moved.present_bytes / 1e6:.1f} MB were in their stores already"
        )
        with Client.connect(running.local.cluster_path, running.local.key_path) as client:
            step(f"asking: {prompt}")
            console.print()
            with client.generate(prompt, max_tokens=64, temperature=0) as generation:
                for token in generation:
                    console.print(token.text, end="", markup=False, soft_wrap=True)
            first = time.perf_counter() - started - sum(generation.result.token_seconds)
            console.print("\n")
            step(f"first token {first:.1f} s after the start of this run")
            measured = statistics.median(measured_ms(client)[1] for _ in range(MEASURED_RUNS))
        plan = running.plan
        best = min(plan.one_device, key=lambda a: a.decode_seconds)
        step(
            f"ms per token: predicted {plan.token_seconds * 1e3:.2f}, measured {measured:.2f} "
            f"({plan.token_seconds * 1e3 / measured - 1:+.1%}, median of {MEASURED_RUNS} runs)"
        )
        step(
            f"one device with room would take {best.decode_seconds * 1e3:.2f} ms per token; "
            f"{best.device} lacks {best.missing_bytes / 2**20:.0f} MiB for it"
        )
        step(
            f"model: {store.root}  plan: {folder / 'plan.json'}  profile: {folder / 'profile.json'}"
        )
        stores = ", ".join(str(running.local.store_path(name)) for name in running.local.names)
        step(f"device stores: {stores}")
    step("all agents have ended")
