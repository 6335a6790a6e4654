"""Checkpoints of nanoGPT, litgpt and lingua: the logits of their own forward, and what then takes the folder."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile

import pytest
import torch
import transformers
from tests.checkpoint import trainers

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.assembly.initial_weights import init_or_load_weights
from automodel_cli.batch import Batch
from automodel_cli.checkpoint.imports import torch_file
from automodel_cli.checkpoint.imports import trainers as imports
from automodel_cli.cli import app
from automodel_cli.config.schema.results import ImportConfig
from automodel_cli.corpus.tokenizer import open_tokenizer
from automodel_cli.errors import CheckpointError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.recipes import import_checkpoint

IDS = torch.arange(14).view(1, 14) * 7 % 61
# Of a pickle: a tensor of two numbers over the storage "0", which has four.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    b"X\1\0\0\0" + b"0NK\4tQK\0K\2\x85K\1\x85NNtR"
)


def made(source, tmp_path, **settings):
    said: list[str] = []
    cfg = ImportConfig(source=str(source), output=str(tmp_path / "out"), **settings)
    return import_checkpoint.run(cfg, say=said.append), said


def check_logits(folder, expected):
    """Ours and transformers' read the folder and compute what the trainer did."""
    with torch.no_grad():
        ours = load_model(folder).model(Batch(IDS, None))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path, bias):
    state = trainers.nanogpt_state(bias=bias)
    path = trainers.save_nanogpt(tmp_path / "run", state, bias=bias)
    result, said = made(path if bias else path.parent, tmp_path)
    assert result.trainer == "nanoGPT" and any("gelu (erf)" in line for line in said)
    check_logits(result.folder, trainers.nanogpt_logits(state, IDS))
    model = build_gpt2_model(
        vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=4, bias=bias, activation="gelu"
    )
    init_or_load_weights(model, init_from=str(result.folder), seed=0, device=torch.device("cpu"))
    torch.testing.assert_close(
        model.eval()(Batch(IDS, None)), trainers.nanogpt_logits(state, IDS), atol=1e-5, rtol=1e-5
    )


def test_an_early_nanogpt_has_the_other_gelu(tmp_path):
    state = trainers.nanogpt_state(bias=True)
    path = trainers.save_nanogpt(tmp_path / "run", state, bias=True)
    stored = torch.load(path, weights_only=True)
    del stored["model_args"]["bias"]
    torch.save(stored, path)
    result, said = made(path, tmp_path)
    assert any("gelu_tanh" in line for line in said)
    check_logits(result.folder, trainers.nanogpt_logits(state, IDS, approximate="tanh"))
    assert json.loads((result.folder / "config.json").read_text())["activation_function"] == "gelu_new"


@pytest.mark.parametrize("kind", ["joined", "by group", "alone", "tied"])
def test_litgpt(tmp_path, kind):
    state = trainers.llama_state(trainers.LITGPT)
    expected = trainers.litgpt_logits(state, IDS, by_group=kind == "by group")
    if kind == "by group":
        state = {name.replace("attn.qkv.", "attn.attn."): tensor for name, tensor in state.items()}
    if kind == "tied":
        state["lm_head.weight"] = state["transformer.wte.weight"]
        expected = trainers.litgpt_logits(state, IDS)
    result, _ = made(trainers.save_litgpt(tmp_path / "run", state, alone=kind == "alone"), tmp_path)
    check_logits(result.folder, expected)
    config = json.loads((result.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] == (kind == "tied")


def test_litgpt_rope_of_llama_3_1(tmp_path):
    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8}
    state = trainers.llama_state(trainers.LITGPT)
    result, _ = made(trainers.save_litgpt(tmp_path / "run", state, rope_adjustments=scaling), tmp_path)
    found = json.loads((result.folder / "config.json").read_text())["rope_parameters"]
    assert found["rope_type"] == "llama3" and found["original_max_position_embeddings"] == 8
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(result.folder).eval()(IDS).logits
        ours = load_model(result.folder).model(Batch(IDS, None))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (theirs - trainers.litgpt_logits(state, IDS)).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_lingua(tmp_path, tied):
    state = trainers.llama_state(trainers.LINGUA)
    if tied:
        state["output.weight"] = state["tok_embeddings.weight"]
    expected = trainers.lingua_logits(state, IDS)
    if tied:
        state["output.tied_module.weight"] = state.pop("output.weight")
    trainers.save_lingua(tmp_path / "step/consolidated", state, weight_tying=tied)
    result, _ = made(tmp_path / ("step" if tied else "step/consolidated"), tmp_path)
    check_logits(result.folder, expected)


def test_the_commands_that_take_the_folder(tmp_path, capsys):
    state = {name: torch.cat([tensor] * 5)[:300] if tensor.shape[0] == 61 else tensor
             for name, tensor in trainers.nanogpt_state(bias=False).items()}  # fmt: skip
    path = trainers.save_nanogpt(tmp_path, state, bias=False, vocab_size=300)
    out = str(tmp_path / "out")
    assert app.run(["import", str(path), out, "--tokenizer", "byte"]) == 0
    assert "KiB from a checkpoint of nanoGPT" in " ".join(capsys.readouterr().out.split())
    assert app.run(["generate", out, "-p", "a", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert "4 tokens at" in capsys.readouterr().err
    assert app.run(["inspect-ckpt", out, "--verify"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    assert open_tokenizer(out).vocab_size == 257


def test_a_tokenizer_in_the_folder_comes_along(tmp_path):
    state = trainers.llama_state({**trainers.LITGPT, "embedding": ("transformer.wte.weight", (300, 24)),
                                  "head": ("lm_head.weight", (300, 24))})  # fmt: skip
    folder = trainers.save_litgpt(tmp_path / "run", state, padded_vocab_size=300)
    open_tokenizer("byte").save(tmp_path / "byte")
    first, _ = made(folder, tmp_path, tokenizer=str(tmp_path / "byte"))
    (folder / "tokenizer.json").write_bytes((first.folder / "tokenizer.json").read_bytes())
    first.folder.rename(tmp_path / "first")
    result, said = made(folder, tmp_path)
    assert not any("tokenizer" in line for line in said) and (result.folder / "tokenizer.json").is_file()


def broken(tmp_path, what):
    """A checkpoint of each trainer with one thing wrong, and a part of what is said."""
    gpt, lit, ling = trainers.nanogpt_state(bias=False), trainers.LITGPT, trainers.LINGUA
    run = tmp_path / "run"
    if what == "another architecture":
        return trainers.save_nanogpt(run, gpt, bias=False, use_rmsnorm=True), "model_args has use_rmsnorm"
    if what == "an untied head":
        gpt["lm_head.weight"] = gpt["lm_head.weight"] + 1
        return trainers.save_nanogpt(run, gpt, bias=False), "lm_head.weight is not wte.weight"
    if what == "fewer layers":
        return trainers.save_nanogpt(run, gpt, bias=False, n_layer=1), "n_layer is 1, the weights have 2"
    if what == "a size of another kind":
        return trainers.save_nanogpt(run, gpt, bias=False, n_layer="2"), "n_layer"
    if what == "biases that are not told":
        return trainers.save_nanogpt(run, gpt, bias=True), "bias is missing"
    if what == "another number of heads":
        return trainers.save_nanogpt(run, gpt, bias=False, n_head=5), "n_head"
    if what == "NaN":
        gpt["transformer.h.1.mlp.c_fc.weight"][3, 3] = float("nan")
        return trainers.save_nanogpt(run, gpt, bias=False), "h.1.mlp.c_fc.weight holds NaN"
    if what == "whole numbers":
        gpt["transformer.ln_f.weight"] = torch.ones(24, dtype=torch.int8)
        return trainers.save_nanogpt(run, gpt, bias=False), "quantized"
    if what == "a stranger":
        state = trainers.llama_state(lit)
        state["transformer.h.0.attn.norm_q.weight"] = torch.ones(6)
        return trainers.save_litgpt(run, state), "norm_q.weight is not a weight of a Llama"
    if what == "Pythia":
        return trainers.save_litgpt(run, trainers.llama_state(lit), norm_class_name="LayerNorm"), "LayerNorm"
    if what == "a key of later":
        return trainers.save_litgpt(run, trainers.llama_state(lit), final_logit_softcapping=30.0), "softcapping"
    if what == "a wrong shape":
        state = trainers.llama_state(ling)
        state["layers.1.attention.wo.weight"] = torch.ones(24, 30)
        return trainers.save_lingua(run, state), "layers.1.self_attn.o_proj.weight has shape (24, 30)"
    if what == "a window":
        return trainers.save_lingua(run, trainers.llama_state(ling), sliding_window=8), "sliding_window is 8"
    if what == "no numbers":
        return trainers.save_lingua(run, trainers.llama_state(ling), dim="24"), "dim"
    if what == "a layer far away":
        state = trainers.llama_state(ling)
        state["layers.99999999.ffn_norm.weight"] = torch.ones(24)
        return trainers.save_lingua(run, state), "n_layers is 2"
    run.mkdir()
    if what == "text":
        (run / "ckpt.pt").write_text("hello")
        return run, "not an archive of torch.save"
    if what == "other weights":
        torch.save({"weight": torch.ones(2)}, run / "ckpt.pt")
        return run, "no model_args"
    return run, "cannot be imported"


@pytest.mark.parametrize(
    "what",
    [
        "another architecture", "an untied head", "fewer layers", "a size of another kind", "biases that are not told",
        "another number of heads", "NaN", "whole numbers", "a stranger", "Pythia", "a key of later", "a wrong shape",
        "a window", "no numbers", "a layer far away", "text", "other weights", "nothing",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_two_lines(tmp_path, capsys, what):
    source, said = broken(tmp_path, what)
    assert app.run(["import", str(source), str(tmp_path / "out")]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and "bug in automodel" not in err and len(err.strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.tmp"))


class TestHostile:
    """Nothing in a file is run, and none makes us allocate what it has not got."""

    def archive(self, path, pickled, entries=None, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x/data.pkl", pickled)
            for name, content in (entries or {}).items():
                archive.writestr(f"x/{name}", content)
        return path

    @pytest.mark.parametrize("protocol", [0, 2, 5])
    def test_code_is_not_run(self, tmp_path, capsys, protocol):
        class Evil:
            def __reduce__(self):
                return eval, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",)

        path = self.archive(tmp_path / "ckpt.pt", pickle.dumps({"model": Evil(), "model_args": {}}, protocol))
        assert app.run(["import", str(path), str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert "is refused: it names" in err and "eval" in err and len(err.strip().splitlines()) <= 3
        assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("module", "name", "arguments"),
        [
            ("builtins", "bytearray", (1 << 40,)),
            ("torch", "FloatTensor", (1 << 40,)),
            ("torch", "load", ("/etc/passwd",)),
            ("builtins", "getattr", ("a", "b")),
            ("torch.serialization", "load", ("x",)),
            ("torch._utils", "_rebuild_tensor_v3", ()),
            ("copyreg", "_reconstructor", ()),
            ("automodel_cli.checkpoint.imports.torch_file", "read", ("x",)),
        ],
    )
    def test_other_names(self, tmp_path, capsys, module, name, arguments):
        pickled = f"c{module}\n{name}\n".encode() + pickle.dumps(arguments, 0).rstrip(b".") + b"R."
        path = self.archive(tmp_path / "ckpt.pt", pickled)
        assert app.run(["import", str(path), str(tmp_path / "out")]) == 1
        assert f"it names {module}.{name}" in capsys.readouterr().err

    def tensor(self, shape, strides, offset=0, elements=4):
        """A pickle of one tensor over a storage of four numbers."""

        class Storage:
            pass

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing):
                return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(thing, Storage) else None

        class Tensor:
            def __reduce__(self):
                return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, {})

        buffer = io.BytesIO()
        Pickler(buffer, 2).dump({"model": {"w": Tensor()}, "model_args": {}})
        return buffer.getvalue()

    @pytest.mark.parametrize(
        ("shape", "strides", "offset"),
        [
            ((1 << 40,), (0,), 0), ((4, 4), (0, 1), 0), ((4,), (1,), 1), ((4,), (1,), -1), ((2,), (-1,), 1),
            ((2,), (1 << 60,), 0), ((2,), (4,), 0), ((1,) * 65, (1,) * 65, 0), ((2,), (1, 1), 0), (("2",), (1,), 0),
        ],
    )  # fmt: skip
    def test_tensors_larger_than_their_bytes(self, tmp_path, capsys, shape, strides, offset):
        content = self.tensor(shape, strides, offset)
        path = self.archive(tmp_path / "ckpt.pt", content, {"data/0": bytes(16)})
        assert app.run(["import", str(path), str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert "is refused" in err and len(err.strip().splitlines()) <= 3

    @pytest.mark.parametrize(
        "change",
        {
            "BUILD": TENSOR + b"(" + TENSOR + b"K\0\x8a\x06\0\0\0\0\0\x01\x85K\0\x85tb.",
            "SETITEM": TENSOR + b"K\0K\0s.",
            "ADDITEMS": TENSOR + b"(" + TENSOR + b"\x90.",
            "of a function": b"ctorch\nSize\nN}X\x0c\0\0\0__defaults__K\1s\x86b.",
            "a tuple as a key": b"}))\x86Ns.",
        }.items(),
        ids=lambda item: item[0],
    )
    def test_nothing_that_was_made_is_changed(self, tmp_path, change):
        """BUILD of a tensor is Tensor.set_: any shape over its four numbers; ADDITEMS is Tensor.add, of any size."""
        path = self.archive(tmp_path / "ckpt.pt", b"\x80\x04" + change[1], {"data/0": bytes(16)})
        with pytest.raises(CheckpointError, match=r"it changes a|that no file of weights|neither a name"):
            torch_file.read(path)

    def test_entries_that_share_bytes(self, tmp_path):
        """Each would become memory of its own where it is not aligned."""
        path = self.archive(tmp_path / "ckpt.pt", TENSOR + b".", {"data/0": bytes(4096)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x/last", b"")
            for number in range(1, 9):
                again = copy.copy(archive.getinfo("x/data/0"))
                again.filename = f"x/data/{number}"
                archive.filelist.append(again)
        with pytest.raises(CheckpointError, match="overlap"):
            torch_file.read(path)

    def test_a_storage_is_not_any_number_of_weights(self, tmp_path):
        """The folder would be as large as the file says."""
        args = dict.fromkeys(("n_layer", "n_head", "n_embd", "block_size", "vocab_size"), 1)
        large = TENSOR.replace(b"K\2\x85", b"M\0\x10\x85")
        names = b"".join(b"X\1\0\0\0" + bytes([97 + number]) + b"h\x63" for number in range(8))
        pickled = b"\x80\2}(X\x0a\0\0\0model_args" + pickle.dumps(args, 2)[2:-1] + b"X\5\0\0\0model"
        pickled = pickled.replace(b"}(", large + b"q\x630}(", 1) + b"}(" + names + b"uu."
        path = self.archive(tmp_path / "ckpt.pt", pickled, {"data/0": bytes(16384)})
        with pytest.raises(CheckpointError, match="they share storage"):
            imports.read(path)

    @pytest.mark.parametrize("skew", range(4))
    def test_tied_weights_are_one_storage_wherever_it_lies(self, tmp_path, skew):
        entries = {"version": bytes(skew), "data/0": bytes(16)}
        one, other = torch_file.read(self.archive(tmp_path / "ckpt.pt", TENSOR + TENSOR + b"\x86.", entries))
        assert one.data_ptr() == other.data_ptr()

    @pytest.mark.parametrize("entries", [{}, {"data/0": bytes(8)}, {"data/0": bytes(16), "byteorder": b"big"}])
    def test_entries_that_are_not_there(self, tmp_path, capsys, entries):
        path = self.archive(tmp_path / "ckpt.pt", self.tensor((4,), (1,)), entries)
        assert app.run(["import", str(path), str(tmp_path / "out")]) == 1
        assert "is refused" in capsys.readouterr().err

    def test_compressed_entries(self, tmp_path, capsys):
        path = self.archive(tmp_path / "ckpt.pt", self.tensor((4,), (1,)), {"data/0": bytes(16)}, zipfile.ZIP_DEFLATED)
        assert app.run(["import", str(path), str(tmp_path / "out")]) == 1
        assert "compressed" in capsys.readouterr().err

    def test_a_cut_file_and_flipped_bytes_end_in_two_lines(self, tmp_path, capsys):
        whole = trainers.save_nanogpt(tmp_path, trainers.nanogpt_state(bias=False), bias=False).read_bytes()
        path = tmp_path / "cut.pt"
        for number in range(16):
            content = bytearray(whole[: len(whole) * (16 - number) // 16] if number % 2 else whole)
            content[number * 9973 % len(content)] ^= 0xFF
            path.write_bytes(content)
            app.run(["import", str(path), str(tmp_path / f"out{number}")])
            err = capsys.readouterr().err
            assert "bug in automodel" not in err and len(err.strip().splitlines()) <= 3, err


def test_what_litgpts_converters_write(tmp_path):
    """Protocol 5, which torch's own weights-only reader does not know."""
    state = trainers.llama_state(trainers.LITGPT)
    folder = trainers.save_litgpt(tmp_path / "run", state)

    torch.save(dict(state), folder / "lit_model.pth", pickle_protocol=5)
    result, _ = made(folder, tmp_path)
    check_logits(result.folder, trainers.litgpt_logits(state, IDS))


def test_more_heads_than_columns(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps({"model": {"dim": 4, "n_layers": 1, "n_heads": 8}}))
    torch.save({"layers.0.attention.wq.weight": torch.ones(4, 4)}, tmp_path / "consolidated.pth")
    with pytest.raises(CheckpointError, match="no heads of 0"):
        imports.read(tmp_path)
