"""A profiler process that measures nothing: `python -m support.runtime_profiler`."""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    config = json.loads(sys.stdin.readline())
    print("a library prints what is no JSON", flush=True)
    print(json.dumps({"progress": "measuring"}), flush=True)
    if config["spec"].get("fail"):
        print(json.dumps({"error": "the provider fell over"}), flush=True)
        sys.exit(1)
    print(
        json.dumps({"result": {"threads": config["threads"], "spec": config["spec"]}}), flush=True
    )
