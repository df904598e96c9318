"""Ask several things at once: python examples/generate_async.py cluster.toml keys/me.secret."""

import asyncio
import sys
from collections.abc import Sequence

from edgeshard import AsyncClient, Result

PROMPTS = ("What is the capital of France?", "Name a colour.", "What do bees make?")


async def ask(cluster: str, key: str, prompts: Sequence[str] = PROMPTS) -> list[Result]:
    """Send every prompt at once; the answers come back in the order of the prompts."""
    async with AsyncClient.connect(cluster, key) as client:
        running = [client.generate(prompt, max_tokens=32) for prompt in prompts]
        return await asyncio.gather(*(generation.finish() for generation in running))


def main(cluster: str, key: str, prompts: Sequence[str] = PROMPTS) -> None:
    """Print each answer, why it ended and what it took."""
    for prompt, result in zip(prompts, asyncio.run(ask(cluster, key, prompts)), strict=True):
        print(f"{prompt}\n  {result.text}")
        milliseconds = 1000 * sum(result.token_seconds) / max(1, len(result.token_seconds))
        print(f"  {result.finish_reason}, {milliseconds:.1f} ms per token after the first")


if __name__ == "__main__":
    main(*sys.argv[1:3])
