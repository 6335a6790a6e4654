"""Two ranks: exchanges and their gradients, attention over ranks, and pretrained weights read in pieces."""

import copy

import pytest
import torch
import torch.distributed as dist
import transformers
from tests.distributed.ranks import run_ranks

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.checkpoint.hf.export import save_hf
from automodel_cli.checkpoint.new_rows import vocabulary_tables
from automodel_cli.config.targets.target import Target
from automodel_cli.distributed.collectives import gather, move_rows, sum_and_divide
from automodel_cli.distributed.context_parallel import SequenceSharder
from automodel_cli.distributed.grad_sync import local
from automodel_cli.distributed.parallelize import ParallelConfig, ParallelModel
from automodel_cli.distributed.start import build_mesh
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.layers.shared import attend_sdpa
from automodel_cli.models.llama import build_llama_model

SHAPE = {
    "vocab_size": 62,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def hf_config(name):
    kinds = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
    return kinds[name](**SHAPE, tie_word_embeddings=name == "qwen2")


def exchanges(world):
    """Each exchange against what it means, forward and backward; True where they agree."""
    group, rank = dist.group.WORLD, world.rank
    whole = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1 + rank))
    weights = [torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1 + r)) for r in (0, 1)]

    piece = whole.chunk(2, dim=1)[rank].clone().requires_grad_()
    gathered = gather(piece, 1, group)
    (gathered * weight).sum().backward()
    found = [torch.equal(gathered, whole), torch.equal(piece.grad, sum(weights).chunk(2, dim=1)[rank])]

    partial = weight.clone().requires_grad_()
    summed = sum_and_divide(partial, 1, group)
    (summed * whole.chunk(2, dim=1)[rank]).sum().backward()
    found += [torch.equal(summed, sum(weights).chunk(2, dim=1)[rank]), torch.equal(partial.grad, whole)]

    rows = (torch.arange(4.0) + 4 * rank).requires_grad_()  # even rows to rank 0, odd ones to rank 1
    arrived = move_rows(rows, [[0, 2], [1, 3]], [2, 2], group)
    (arrived * 10).sum().backward()
    found += [arrived.tolist() == [0 + rank, 2 + rank, 4 + rank, 6 + rank], rows.grad.tolist() == [10.0] * 4]
    return found


def attention(world, segments):
    """Largest differences of output and gradients between attention over two ranks and in one."""
    world = copy.copy(world)
    object.__setattr__(world, "mesh", build_mesh("cpu", {"cp": 2}))
    tokens = SequenceSharder(world)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (2, 12), generator=generator)
    segment_ids = torch.tensor([[0] * 5 + [1] * 7, [0] * 8 + [1] * 4]) if segments else None
    tokens.see(tokens._padded(Batch(ids, ids, segment_ids=segment_ids)))
    whole = [torch.randn(2, 2, 12, 4, generator=generator) for _ in range(4)]  # q, k, v, gradient
    parts = [tokens.of_cp_rank(one.transpose(1, 2)).transpose(1, 2).clone() for one in whole]
    for tensor in [*whole[:3], *parts[:3]]:
        tensor.requires_grad_()
    mask = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    reference = attend_sdpa(*whole[:3], mask=mask, dropout=0.0)
    reference.backward(whole[3])
    mixed = tokens.attending(attend_sdpa)(*parts[:3], mask=None, dropout=0.0)
    mixed.backward(parts[3])
    differences = []
    for ours, expected in [
        (mixed, reference),
        *((p.grad, w.grad) for p, w in zip(parts[:3], whole, strict=False)),
    ]:
        own = tokens.of_cp_rank(expected.transpose(1, 2)).transpose(1, 2)
        differences.append(float((ours - own).abs().max()))
    return differences


def reads_pieces(world, folder, name, mesh):
    """The weights of a folder over a mesh: whole again equal to the file's; and the share that this rank holds."""
    from automodel_cli.assembly.initial_weights import init_or_load_weights
    from automodel_cli.assembly.model import build_model

    world = copy.copy(world)
    object.__setattr__(world, "mesh", build_mesh("cpu", mesh))
    target = Target("transformers.AutoModelForCausalLM.from_pretrained", {"pretrained_model_name_or_path": folder})
    model = build_model(target, seed=0, on_meta=True)
    ParallelModel(model, world, ParallelConfig(tp_plan=model.tp_plan()))
    on_meta = all(parameter.is_meta for parameter in model.parameters())
    said = init_or_load_weights(model, init_from=None, seed=0, device=torch.device("cpu"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = dict(reference.named_parameters())
    ours = dict(model.hf.named_parameters())
    equal = [torch.equal(ours[key].full_tensor(), expected[key]) for key in expected]
    held = sum(local(parameter).numel() for parameter in ours.values())
    whole = sum(parameter.numel() for parameter in expected.values())
    buffers = all(torch.equal(one, other) for one, other in zip(model.hf.buffers(), reference.buffers(), strict=True))
    return {
        "on meta": on_meta,
        "equal": all(equal) and ours.keys() == expected.keys(),
        "share": held / whole,
        "said": said,
        "buffers": buffers,
    }


def reads_own_pieces(world, folder, mesh):
    """Whether our Llama over a mesh got a folder's weights, tables filled up with zeros."""
    from automodel_cli.assembly.initial_weights import init_or_load_weights

    world = copy.copy(world)
    object.__setattr__(world, "mesh", build_mesh("cpu", mesh))
    model = build_llama_model(**SHAPE, is_meta_device=True)
    ParallelModel(model, world, ParallelConfig(tp_plan=model.tp_plan()))
    init_or_load_weights(model, init_from=folder, seed=0, device=torch.device("cpu"))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    equal = []
    for name, parameter in model.named_parameters():
        whole, theirs = parameter.full_tensor(), expected[model.hf_tensors()[name].name]
        equal.append(torch.equal(whole[: len(theirs)], theirs) and not whole[len(theirs) :].any())
    return all(equal)


def grows(world, folder, mesh):
    """Whether new ids of our Llama over a mesh begin as the mean of the folder's, and padding as zeros."""
    from automodel_cli.assembly.initial_weights import init_or_load_weights

    world = copy.copy(world)
    object.__setattr__(world, "mesh", build_mesh("cpu", mesh))
    known = SHAPE["vocab_size"]
    model = build_llama_model(**SHAPE | {"vocab_size": known + 3}, is_meta_device=True)
    ParallelModel(model, world, ParallelConfig(tp_plan=model.tp_plan()))
    init_or_load_weights(model, init_from=folder, seed=0, device=torch.device("cpu"), known=known, world=world)
    right = []
    for parameter in vocabulary_tables(model).values():
        whole = parameter.full_tensor()
        mean = whole[:known].double().mean(dim=0).float()
        right += [torch.allclose(row, mean, atol=1e-7) and bool(row.any()) for row in whole[known : known + 3]]
        right.append(not whole[known + 3 :].any())
    return len(right) == 8 and all(right)


def everything(world, folders):
    return {
        "exchanges": exchanges(world),
        "attention": attention(world, segments=False),
        "segments": attention(world, segments=True),
        "pieces": {
            f"{name}, {mesh}": reads_pieces(world, folder, name, mesh)
            for name, folder in folders.items()
            for mesh in ({"tp": 2}, {})
        },
        "own": [reads_own_pieces(world, folders["llama"], mesh) for mesh in ({"tp": 2}, {})],
        "grown": [grows(world, folders["llama"], mesh) for mesh in ({"tp": 2}, {})],
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folders = {}
    for name in ("llama", "qwen2"):
        model = from_config(hf_config(name))
        model.init_weights(seed=5)
        folders[name] = str(save_hf(model, tmp_path_factory.mktemp("hf") / name))
    return run_ranks(2, everything, folders)


def test_exchanges_and_their_gradients(results):
    assert [result["exchanges"] for result in results] == [[True] * 6] * 2


def test_attention_over_ranks_is_attention(results):
    for result in results:
        assert max(*result["attention"], *result["segments"]) < 2e-6


def test_pretrained_weights_are_read_in_pieces(results):
    for result in results:
        for name, found in result["pieces"].items():
            assert found["on meta"] and found["equal"] and found["buffers"], name
            assert found["share"] < 0.56, name  # norms are copies on tensor-parallel ranks
            assert found["said"].startswith("pretrained, ")


def test_our_llama_reads_its_pieces_and_pads_its_tables(results):
    assert [result["own"] for result in results] == [[True, True]] * 2
    assert [result["grown"] for result in results] == [[True, True]] * 2


def test_a_part_of_a_batch_has_its_positions():
    """Without ranks: the four parts of cp 2 x tp 2 are the batch, padded; labels of padding are ignored."""

    class Placed:
        mesh = None

        def __init__(self, cp, tp):
            self.places = {"cp": cp, "tp": tp}

        def axis_size(self, axis):
            return 2

        def axis_rank(self, axis):
            return self.places[axis]

    ids = torch.arange(2 * 13).view(2, 13)
    parts = {}
    for cp in (0, 1):
        for tp in (0, 1):
            parts[cp, tp] = SequenceSharder(Placed(cp, tp)).shard_batch(Batch(ids, ids + 1))
    assert all(part.input_ids.shape == (2, 4) for part in parts.values())
    assert parts[0, 0].position_ids[0].tolist() == [0, 1, 2, 3]
    assert parts[0, 1].position_ids[0].tolist() == [12, 0, 0, 0]  # of 16, three are padding
    assert parts[1, 0].position_ids[0].tolist() == [4, 5, 6, 7]
    seen = sorted(int(label) for part in parts.values() for label in part.labels.flatten() if label != IGNORE_INDEX)
    assert seen == sorted((ids + 1).flatten().tolist())


def test_blocks_are_the_stacked_layers():
    assert len(build_gpt2_model(n_layer=3, is_meta_device=True).blocks()) == 3
    assert len(from_config(hf_config("llama"), is_meta_device=True).blocks()) == 2
