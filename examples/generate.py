"""Stream an answer: python examples/generate.py cluster.toml keys/me.secret."""

import sys

from edgeshard import Client


def main(cluster: str, key: str, prompt: str = "What is the capital of France?") -> None:
    """Print the answer as it grows."""
    with Client.connect(cluster, key) as client:
        for token in client.generate(prompt, max_tokens=64):
            print(token.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
