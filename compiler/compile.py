"""Checkpoint to compiled model, for one target or several.

    path ┬ description of the model, in a process ────────────┐
         └ open ┬ digest of the files, in a thread ───────────│───────┐
                └ for each target: compilation.py, loops ─────┴ units ┴→ manifest

The manifest is published last: what an interrupted compile leaves behind is unnamed blobs, which
the next one takes over. For several targets all of it but the reading is done for each, over the
same blobs where their weights lie the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgeshard.artifacts.store import Store
from edgeshard.compiler.cache_scales import ShowCache
from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint, locate, open_checkpoint
from edgeshard.compiler.description import Describing
from edgeshard.compiler.finished import Compiled
from edgeshard.compiler.progress import Progress
from edgeshard.compiler.source import SourceDigest
from edgeshard.schemas.common import FloatType, Precision, Target
from edgeshard.schemas.model import ModelManifest, Variant


def compile_model(
    path: Path,
    store: Store,
    *,
    name: str | None = None,
    precision: Precision | None = None,
    activations: FloatType | None = None,
    target: Target = "ort",
    variants: Sequence[Target] = (),
    context: int = 2048,
    jobs: int | None = None,
    bits: float | None = None,
    calibration: Calibration | None = None,
    show_cache: ShowCache | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Compiled:
    """Compile a checkpoint into units in a store.

    Args:
        path: a Hugging Face folder or a .gguf file.
        store: where blobs and manifest go.
        name: of the model in the store; None: from the path, precision and targets.
        precision: None: as stored for a quantised GGUF, else fp32.
        activations: type of what flows within a unit and of keys and values; None: float32, with
            fp16 and bf16 the type of the weights.
        target: whose operators to use.
        variants: further targets; each gives graphs of its own over the same weights.
        context: positions of the cache for targets that fix them in the graph.
        jobs: units at once; None: as many as processors, at most 8.
        bits: with int4 and mixed, most that a parameter may take on average; None: see `choice.py`
            and `mixture.py`.
        calibration: which columns and matrices count more, for what is quantised here.
        show_cache: keys and values are kept in int8, by what this shows of them; None: as floats.
        on_progress: told at every piece, from several threads but never at once.

    Raises:
        InputError: the checkpoint cannot be used; nothing was named in the store.
        ArtifactError: the store cannot be written.
    """
    on_progress(Progress("reading the checkpoint", 0, 1))
    path = locate(path)
    targets = tuple(dict.fromkeys((target, *variants)))
    with Describing(path) as describing, _opened(path, store) as (checkpoint, source):
        # Imported only now: numba and onnx take their time, in which the others get on.
        from edgeshard.compiler.compilation import Compilation

        found = [
            Compilation(
                checkpoint,
                store,
                source,
                describing,
                precision,
                activations,
                one,
                context,
                on_progress,
            )
            for one in targets
        ]
        for compilation in found:
            compilation.jobs = jobs or compilation.jobs
            compilation.bits, compilation.calibration = bits, calibration or Calibration()
            compilation.show_cache = show_cache
        first, *others = [compilation.run(name, targets) for compilation in found]
    manifest = msgspec.structs.replace(first, variants=tuple(_variant(other) for other in others))
    notices = dict.fromkeys(notice for compilation in found for notice in compilation.notices)
    return Compiled(manifest, store.put_model(manifest), tuple(notices), found[0].num_reused)


@contextmanager
def _opened(path: Path, store: Store) -> Iterator[tuple[Checkpoint, SourceDigest]]:
    """A checkpoint, and its digest, which is being taken."""
    checkpoint = open_checkpoint(path)
    with SourceDigest(store, checkpoint) as source:
        yield checkpoint, source


def _variant(manifest: ModelManifest) -> Variant:
    return Variant(**{name: getattr(manifest, name) for name in Variant.__struct_fields__})
