"""Prompts over keys and values in int8 say what ONNX Runtime's kernel over int8 says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.errors import ArtifactError
from edgeshard.runtime import loading
from edgeshard.runtime.prompt_attention import IS_PROMPT, with_prompt_attention
from support.tiny_llama import VOCAB, CompiledModel, compiled

TEXT = [int(token) for token in np.random.default_rng(7).integers(0, VOCAB, 40)]


def _graph(model: CompiledModel) -> onnx.ModelProto:
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, len(model.manifest.units))
    return onnx.load(str(model.store.path(shard.graph)), load_external_data=False)


@pytest.mark.parametrize("variant", ["grouped", "multi_head", "nine_heads"])
def test_both_ways_see_and_leave_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled(variant, int8_cache=True)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "with_prompt_attention", lambda graph: graph)
        kernel = model.chain(slots=2)
    with model.chain(slots=2) as ours, kernel:
        for start, stop in ((0, 30), (30, 40)):
            expected, found = (
                chain.step(start, TEXT[start:stop], slot=1, every_position=True)
                for chain in (kernel, ours)
            )
            np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
        held, wanted = (chain.shards[0].held(1, 40) for chain in (ours, kernel))

    assert len(held) == 2 * model.manifest.num_blocks
    for codes, others in zip(held, wanted, strict=True):
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int) - others).max() <= 1
        assert (codes == others).mean() > 0.99
        assert np.abs(codes).max() > 60


def test_a_condition_takes_the_place_of_the_operator_when_a_shard_is_loaded() -> None:
    graph = _graph(compiled("grouped", int8_cache=True))
    changed = with_prompt_attention(graph)

    assert [one.name for one in changed.graph.input][-1] == IS_PROMPT
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds.count("If") == compiled("grouped", int8_cache=True).manifest.num_blocks
    assert "GroupQueryAttention" not in kinds
    assert "If" not in [node.op_type for node in graph.graph.node]  # the artifact has none


@pytest.mark.parametrize("what", ["scale", "table", "heads", "many heads", "ends"])
def test_what_cannot_be_taken_apart_is_refused_by_name(what: str) -> None:
    graph = _graph(compiled("grouped", int8_cache=True))
    node = next(one for one in graph.graph.node if one.op_type == "GroupQueryAttention")
    if what == "heads":
        kept = [one for one in node.attribute if one.name != "num_heads"]
        del node.attribute[:]
        node.attribute.extend(kept)
    elif what == "many heads":
        next(one for one in node.attribute if one.name == "kv_num_heads").i = 10**12
    elif what == "ends":
        del node.output[1:]
    else:
        node.input[{"scale": 12, "table": 7}[what]] = "hidden.1"

    with pytest.raises(ArtifactError, match=f"operator {node.name} over int8 has not"):
        with_prompt_attention(graph)


def test_attention_over_floats_stays_as_it_is() -> None:
    graph = _graph(compiled("grouped"))

    assert with_prompt_attention(graph) is graph
