"""Whether every dependency of a device can be had as a wheel for other systems.

python benchmarks/platforms.py

Asks pip to resolve what `pyproject.toml` says a device needs, at the versions of `constraints.txt`,
for each platform; nothing is installed. Needs the package index. It shows that wheels exist, not
that anything runs there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORMS = {
    "Linux x86-64": ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64"],
    "Linux aarch64": ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"],
    "Windows x86-64": ["win_amd64"],
    "macOS arm64": ["macosx_14_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"],
}
PYTHONS = ("3.11", "3.12")


def resolve(platforms: list[str], python: str) -> str:
    """An empty text where all is there, else pip's last words."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = [word for name in platforms for word in ("--platform", name)]
    with tempfile.TemporaryDirectory() as nowhere:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--disable-pip-version-check", "--ignore-installed", "--target", nowhere),
                *("--only-binary=:all:", "--python-version", python, *names),
                *("-c", str(ROOT / "constraints.txt"), *needs),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else (errors or done.stderr.splitlines() or ["?"])[-1]


def main() -> int:
    """Print a line for each platform; 1 where one is not served."""
    failed = 0
    for system, platforms in PLATFORMS.items():
        for python in PYTHONS:
            problem = resolve(platforms, python)
            failed += bool(problem)
            print(f"{system:<16} Python {python}: {problem or 'every wheel is there'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
