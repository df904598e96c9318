"""`esc profile`: measure units and links on every device of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeshard.errors import InputError

if TYPE_CHECKING:
    from edgeshard.schemas.profile import Profile, UnitProfile


def profile(
    cluster: Annotated[Path, typer.Option(help="The cluster file.")],
    key: Annotated[Path, typer.Option(help="Secret key file of an operator.")],
    store: Annotated[Path, typer.Option(help="Store with the compiled model.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="Name of the model in the store. May be repeated, to plan over several precisions."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the profile goes.")] = Path("profile.json"),
    all_units: Annotated[
        bool, typer.Option("--all-units", help="Measure every block with its own weights.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
) -> None:
    """Measure what every device needs for each unit, and every link between devices.

    Nothing has to be deployed: one representative of each structure is measured with made-up
    weights, and one real block (all with --all-units) checks that it stands for the others.
    """
    from edgeshard.artifacts.store import Store
    from edgeshard.runtime.keys import load_keys
    from edgeshard.runtime.profile_cluster import profile_cluster
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster

    if out.exists() and not force:
        raise InputError(f"{out} exists; give --force to replace it or --out for another place")
    opened = Store(store)
    (manifest, blob), *others = (opened.model(name) for name in dict.fromkeys(model))
    measured = profile_cluster(
        opened,
        manifest,
        blob,
        files.read(cluster, Cluster),
        load_keys(key),
        others=others,
        all_units=all_units,
        on_progress=lambda text: typer.echo(text, err=True),
    )
    files.write(out, measured)
    typer.echo("\n".join(profile_lines(measured)))
    typer.echo(f"written to {out}")


def _name(unit: UnitProfile, measured: Profile) -> str:
    """What a unit is, and its precision where several were measured."""
    return f"{unit.kind} {unit.precision}" if len(measured.models) > 1 else unit.kind


def profile_lines(measured: Profile) -> list[str]:
    """What a person wants to see of a profile: a line a device, a line a link."""
    lines = []
    for device in measured.devices:
        parts = [
            f"{_name(unit, measured)} {unit.decode[0].time.median_seconds * 1e3:.3f} ms"
            + (f" (real block ±{unit.sample_deviation:.0%})" if unit.sample_deviation else "")
            for unit in device.units
        ]
        lines.append(
            f"{device.name}: {', '.join(parts)}; {device.step_overhead_seconds * 1e3:.3f} ms a "
            f"step; limit {device.memory_bytes / 2**20:.0f} MiB; onnxruntime {device.runtime}"
        )
    lines += [
        f"{link.source} → {link.target}: {link.latency_seconds * 1e6:.0f} µs, "
        f"{link.bytes_per_second * 8 / 1e6:.0f} Mbit/s"
        for link in measured.links
    ]
    return lines
