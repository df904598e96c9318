"""Our quantisers beside llama.cpp's on the same weights: divergence and perplexity against bits.

    python benchmarks/quantisation.py --quantize LLAMA_QUANTIZE --out DIR [--model FOLDER]

Without `--model` the weights are SmolLM2's with the channels of the residual and of every FFN in
another order: the same function, but off the grid on which its GGUF file lies. `benchmarks/
train_tiny.py` makes another model. `benchmarks/build_peers.py` builds `llama-quantize`, which gets
the weights as an F32 GGUF.

Every file is dequantised, theirs by the `gguf` package and ours by `compiler/encoding.py`, and put
into transformers' fp32 model: only the weights differ. Bits are of all tensors, over the number of
parameters. For every peer `mixed` is compiled to the same number of bits: from the weights alone,
and calibrated on `edgeshard/texts/grant.txt`. The peers get no importance matrix.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import safe_open

from edgeshard.artifacts.store import Store
from edgeshard.calibrate import calibrate
from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.encoding import FLOAT, Encoding, decode
from edgeshard.errors import InputError
from edgeshard.local_run import default_checkpoint
from edgeshard.quality import next_token_losses, weight_sizes
from edgeshard.schemas.common import Precision
from edgeshard.schemas.model import ModelManifest
from edgeshard.verify import reference_model
from edgeshard.windows import windows_of

Floats = NDArray[np.float32]
Weights = dict[str, Floats]
Kind = tuple[Precision, float | None]  # with `--bits`

PEERS: dict[str, tuple[str, ...]] = {
    "Q4_0 pure": ("--pure", "--token-embedding-type", "q4_0", "Q4_0"),
    "Q4_0": ("Q4_0",),
    "Q4_1": ("Q4_1",),
    "Q4_K_M": ("Q4_K_M",),
    "Q8_0": ("Q8_0",),
}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
THEIRS, OURS, CALIBRATED = "llama.cpp", "EdgeShard", "EdgeShard, calibrated"
READS_RESIDUAL = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


@dataclass(frozen=True)
class Row:
    """One set of weights and what it does."""

    system: str
    variant: str
    bits: float
    perplexity: float
    change: float
    change_error: float
    mean_kl: float
    top1: float


def permuted(folder: Path) -> Path:
    """SmolLM2 with its channels in another order, as a Hugging Face folder; made once."""
    if (folder / "tokenizer_config.json").exists():
        return folder
    checkpoint = open_checkpoint(default_checkpoint())
    model = reference_model(checkpoint)
    config = model.config
    random = np.random.default_rng(0)
    order = torch.from_numpy(random.permutation(config.hidden_size))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if any(part in name for part in READS_RESIDUAL):
                value.copy_(value[:, order].clone())
            else:  # a norm, or rows that are added to the residual
                value.copy_(value[order].clone())
        for layer in model.model.layers:
            inner = torch.from_numpy(random.permutation(config.intermediate_size))
            for matrix in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
                matrix.copy_(matrix[inner].clone())
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, inner].clone())
    model.save_pretrained(folder)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None
    tokenizer.save_pretrained(folder)
    return folder


def interleaved(rows: Floats, heads: int, *, back: bool = False) -> Floats:
    """Rows of queries or keys as llama.cpp has them: pairs of a rotation side by side."""
    half = rows.shape[0] // heads // 2
    shape = (heads, half, 2) if back else (heads, 2, half)
    return rows.reshape(*shape, -1).swapaxes(1, 2).reshape(rows.shape)


def heads_of(name: str, config: Any) -> int:
    """Heads whose rows llama.cpp interleaves in this matrix; 0 for none."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), 0)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    ends = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in ends:
        return ends[name]
    _, _, index, *parts, _ = name.split(".")
    return f"blk.{index}.{GGUF_NAMES['.'.join(parts)]}.weight"


def write_gguf(weights: Weights, config: Any, path: Path) -> None:
    """An F32 file that `llama-quantize` takes; it needs no vocabulary."""
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(config.head_dim)
    file.add_vocab_size(config.vocab_size)
    for name, value in weights.items():
        heads = heads_of(name, config)
        rows = interleaved(value, heads) if heads else value
        file.add_tensor(gguf_name(name), np.ascontiguousarray(rows))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def peers(
    quantize: Path, variants: Iterable[str], weights: Weights, config: Any, out: Path
) -> Iterator[tuple[str, Weights, float]]:
    """llama.cpp's files of these weights: name, dequantised weights, bits a parameter."""
    source = out / "F32.gguf"
    write_gguf(weights, config, source)
    names = {gguf_name(name): name for name in weights}
    count = sum(value.size for value in weights.values())
    for variant in variants:
        path = out / f"{variant.replace(' ', '-')}.gguf"
        *options, kind = PEERS[variant]
        command = [str(quantize), *options, str(source), str(path), kind]
        subprocess.run(command, check=True, capture_output=True)
        found: Weights = {}
        size = 0
        for tensor in gguf.GGUFReader(path).tensors:
            name = names[tensor.name]
            rows = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weights[name].shape)
            heads = heads_of(name, config)
            found[name] = interleaved(rows, heads, back=True) if heads else rows
            size += int(tensor.n_bytes)
        yield variant, found, 8 * size / count


def stored_weights(store: Store, model: ModelManifest, like: Weights) -> Weights:
    """All weights of a compiled model, decoded, under transformers' names as `like` has them."""
    found: Weights = {}
    for unit in model.units:
        prefix = "model."
        if unit.kind == "block":
            prefix += f"layers.{unit.name.removeprefix('block.')}."
        for blob in unit.weights:
            with safe_open(store.path(blob), "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            matrices: dict[str, dict[str, Any]] = {}
            for name, value in tensors.items():
                label, _, part = name.rpartition(".")
                if label and (value.ndim == 2 or part == "scales"):
                    matrices.setdefault(label, {})[part] = value
                elif label:
                    found.setdefault(prefix + name, value)
            for label, parts in matrices.items():
                columns = like[names_of(prefix, label)[0]].shape[1]
                decoded = decode(parts, encoding_of(parts, columns))
                found |= _split(names_of(prefix, label), decoded, model)
    return found


def encoding_of(parts: dict[str, Any], columns: int) -> Encoding:
    """The encoding that left these parts of a matrix."""
    if "codes" not in parts:
        return FLOAT
    bits = 8 * parts["codes"].shape[1] // columns
    block = columns // parts["scales"].shape[1]
    return Encoding("zero_blocks" if "zeros" in parts else "step_blocks", bits, block)


def names_of(prefix: str, label: str) -> list[str]:
    """Of the matrices that lie row behind row under a label."""
    one = f"{label}.weight".replace(".weight.weight", ".weight")
    return [f"{prefix}{name}" for name in one.split("+")]


def _split(names: list[str], rows: Floats, model: ModelManifest) -> Weights:
    """Matrices that lie row behind row as one."""
    sizes = {"k_proj": model.kv.num_kv_heads, "v_proj": model.kv.num_kv_heads}
    counts = [
        next((n * model.kv.head_dim for part, n in sizes.items() if part in name), 0)
        for name in names
    ]
    others = counts.count(0)  # queries; or gate and up, which have equally many rows
    rest = (rows.shape[0] - sum(counts)) // others if others else 0
    counts = [count or rest for count in counts]
    ends = np.cumsum(counts)
    return {
        name: rows[end - count : end] for name, count, end in zip(names, counts, ends, strict=True)
    }


class Judge:
    """Transformers' fp32 model and what it said of every window."""

    def __init__(self, folder: Path, windows: list[NDArray[np.int64]]) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.windows = windows
        self.weights: Weights = {
            name: value.detach().numpy().copy() for name, value in self.model.named_parameters()
        }
        self.expected = [self._say(ids) for ids in windows]
        self.base = np.concatenate(
            [next_token_losses(p, i[0]) for p, i in zip(self.expected, windows, strict=True)]
        )

    def judge(self, system: str, variant: str, weights: Weights, bits: float) -> Row:
        """Put weights in and compare."""
        assert weights.keys() == self.weights.keys(), weights.keys() ^ self.weights.keys()
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                value.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
        losses, divergences, agreed = [], [], 0
        for ids, p in zip(self.windows, self.expected, strict=True):
            q = self._say(ids)
            losses.append(next_token_losses(q, ids[0]))
            divergences.append((p.exp() * (p - q)).sum(-1)[:-1].double().numpy())
            agreed += int((p.argmax(-1) == q.argmax(-1))[:-1].sum())
        loss = np.concatenate(losses)
        more = loss - self.base
        row = Row(
            system,
            variant,
            bits,
            float(np.exp(loss.mean())),
            float(np.expm1(more.mean())),
            float(more.std() / np.sqrt(more.size)),
            float(np.concatenate(divergences).mean()),
            agreed / loss.size,
        )
        print(cells(row), flush=True)
        return row

    def _say(self, ids: NDArray[np.int64]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.from_numpy(ids)).logits[0], -1)


def own_rows(
    judge: Judge,
    folder: Path,
    store: Store,
    system: str,
    kinds: list[Kind],
    calibration: Calibration,
) -> Iterator[Row]:
    """The kinds that are in reach."""
    for precision, number in kinds:
        try:
            compiled = compile_model(
                folder, store, precision=precision, bits=number, calibration=calibration
            )
        except InputError as error:  # fewer bits than all int4 takes, or more than all int8
            print(f"({error})")
            continue
        sizes = weight_sizes(store, compiled.manifest.units)
        real = 8 * sum(size for size, _ in sizes) / sum(count for _, count in sizes)
        weights = stored_weights(store, compiled.manifest, judge.weights)
        yield judge.judge(system, precision, weights, real)


def cells(row: Row) -> str:
    """A line of the table."""
    return (
        f"| {row.system} | {row.variant} | {row.bits:.2f} | {row.perplexity:.3f} | "
        f"{row.change:+.2%} ± {row.change_error:.2%} | {row.mean_kl:.5f} | {row.top1:.1%} |"
    )


def draw(rows: list[Row], perplexity: float, title: str, path: Path) -> None:
    """Divergence and perplexity over bits."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "edgeshard", "font.size": 10})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for system, style in ((THEIRS, "s"), (OURS, "o--"), (CALIBRATED, "o-")):
        own = sorted((r for r in rows if r.system == system), key=lambda r: r.bits)
        left.semilogy([r.bits for r in own], [r.mean_kl for r in own], style, label=system)
        right.plot([r.bits for r in own], [r.perplexity for r in own], style, label=system)
        for index, row in enumerate(own if system == THEIRS else ()):
            # On the left neighbours are closer than their names are long.
            for axis, value, dy in (
                (left, row.mean_kl, -13 if index % 2 else 4),
                (right, row.perplexity, 4),
            ):
                axis.annotate(row.variant, (row.bits, value), (4, dy), textcoords="offset points")
    right.axhline(perplexity, color="grey", lw=1, label="fp32")
    left.set(xlabel="bits per weight", ylabel="mean KL divergence from fp32", title=title)
    right.set(xlabel="bits per weight", ylabel="perplexity")
    for axis in (left, right):
        axis.margins(x=0.12)
        axis.legend()
    figure.savefig(path, metadata={"Date": None, "Title": title})


def main() -> None:
    """Quantise, judge, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantize", type=Path, required=True, help="llama.cpp's llama-quantize")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder of the Llama family")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--bits", type=float, nargs="*", default=[7.0], help="of mixed, besides")
    parser.add_argument("--int4-bits", type=float, nargs="*", default=[], help="of int4, besides")
    parser.add_argument("--peer", action="append", choices=PEERS, help="instead of all")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    folder = arguments.model or permuted(out / "permuted")
    text = resources.files("edgeshard").joinpath("texts", "lincoln.txt").read_text("utf-8")
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    judge = Judge(folder, windows_of(ids, arguments.window, arguments.windows))
    perplexity = float(np.exp(judge.base.mean()))
    print(f"{judge.base.size} tokens, fp32 perplexity {perplexity:.4f}\n")
    print("| system | variant | bits | perplexity | against fp32 | mean KL | top-1 |")
    print("|---|---|--:|--:|--:|--:|--:|", flush=True)
    rows = [
        judge.judge(THEIRS, *peer)
        for peer in peers(
            arguments.quantize, arguments.peer or PEERS, judge.weights, judge.model.config, out
        )
    ]
    store = Store(out / "store")
    words = resources.files("edgeshard").joinpath("texts", "grant.txt").read_text("utf-8")
    kinds: list[Kind] = [("int4", number) for number in (None, *arguments.int4_bits)]
    kinds += [("mixed", n) for n in sorted({*(row.bits for row in rows), *arguments.bits})]
    kinds.append(("int8", None))
    for system, calibration in (
        (CALIBRATED, calibrate(folder, words, with_gains=True)),
        (OURS, Calibration()),
    ):
        rows += own_rows(judge, folder, store, system, kinds, calibration)
    (out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1), "utf-8")
    draw(rows, perplexity, folder.name, out / "curve.svg")


if __name__ == "__main__":
    main()
