"""A GGUF file (version 3, little-endian) for llama.cpp and what is built on it, and a Modelfile for Ollama beside it.

    magic, version, numbers of tensors and keys
    keys                               general.*, ARCHITECTURE.* (hyperparameters), tokenizer.*
    names, shapes, types, places       of the tensors
    tensors                            each at a multiple of 32 bytes

One tensor is in memory at a time. Norms, biases and positions are fp32 whatever the type of the file is, as llama.cpp
expects; rows of q8_0 are blocks of 32 numbers with a scale, so matrices of another width become f16 in such a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

from automodel_cli.checkpoint import layout as run_layout
from automodel_cli.checkpoint.gguf.architecture import Array, Layout, Tensor
from automodel_cli.checkpoint.gguf.vocabulary import Vocabulary
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.files import (
    disk_errors_named,
    exclusive_lock,
    fsync_file,
    make_folder,
    publish,
    temporary_of,
    write_text,
)
from automodel_cli.plain_text import without_controls
from automodel_cli.text import binary_size

TypeName = Literal["f32", "f16", "q8_0"]
# (bytes written, bytes in all, the tensor)
Progress = Callable[[int, int, str], None]

_TYPES = {"f32": Type.F32, "f16": Type.F16, "q8_0": Type.Q8_0}
_FILE_TYPES = {
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ALWAYS_F32 = ("position_embd.weight", "rope_freqs.weight")
_Q8_0_BLOCK = 32
_LARGEST_F16 = 65504.0
_CHATML_FOR_OLLAMA = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


def modelfile_of(path: Path) -> Path:
    """Where the Modelfile of a GGUF file is put."""
    return path.with_suffix(".Modelfile")


def refuse_existing(path: Path) -> None:
    """Raise a CheckpointError where one of the two files is there, or the name is no file's."""
    if path.suffix != ".gguf":
        raise CheckpointError(f"{path} does not end in .gguf", "name a file such as model.gguf")
    if not path.name.isprintable():  # a line of its own in the Modelfile, or no UTF-8
        raise CheckpointError(
            f"{without_controls(str(path))} is a name that a Modelfile cannot hold", "name a file such as model.gguf"
        )
    for file in (path, modelfile_of(path)):
        if file.exists():
            raise CheckpointError(f"{file} exists already", "name a new file, or move that one away")


def write(
    model: Layout,
    vocabulary: Vocabulary,
    path: Path,
    *,
    type_name: TypeName,
    name: str,
    progress: Progress | None = None,
    say: run_layout.Say | None = None,
) -> None:
    """Write both files; the GGUF file appears when it is whole.

    Raises:
        CheckpointError: a file exists, or a tensor is not finite or too large for the type.
        AutomodelError: another process is writing it, the folder may not be written to, or the disk is full.
    """
    refuse_existing(path)
    make_folder(path.parent, "OUT")
    types = {tensor.name: _type_of(tensor, _TYPES[type_name]) for tensor in model.tensors}
    temporary = temporary_of(path)
    lock = temporary.with_name(f"{temporary.name}.lock")
    with exclusive_lock(lock, busy=f"another process is writing {path}"), _discarding(temporary, lock):
        refuse_existing(path)  # another process may have finished it meanwhile
        _refuse_too_much(model, types, path.parent)
        with _disk_errors_named(path):
            _write_file(temporary, model, vocabulary, types, _TYPES[type_name], name, progress)
            publish(temporary, path)
    if say is not None and (others := [one for one, kind in types.items() if kind is Type.F16 and type_name == "q8_0"]):
        say(f"{len(others)} matrices are f16: their rows are no multiple of 32, such as {others[0]}")
    write_text(modelfile_of(path), modelfile(path.name, vocabulary, int(model.keys["context_length"])))


@contextlib.contextmanager
def _discarding(*paths: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors_named(path: Path) -> Iterator[None]:
    """numpy's error of a short write has no number."""
    with disk_errors_named(path):
        try:
            yield
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _write_file(
    path: Path,
    model: Layout,
    vocabulary: Vocabulary,
    types: dict[str, Type],
    file_type: Type,
    name: str,
    progress: Progress | None,
) -> None:
    writer = gguf.GGUFWriter(None, model.name)
    _add_keys(writer, model, vocabulary, file_type, name)
    for tensor in model.tensors:
        kind = types[tensor.name]
        number = np.dtype(np.float16 if kind is Type.F16 else np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, number, _num_bytes(tensor, kind), raw_dtype=kind)
    path.unlink(missing_ok=True)  # a link there would lead elsewhere
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(_num_bytes(tensor, types[tensor.name]) for tensor in model.tensors)
        for tensor in model.tensors:
            if progress is not None:
                progress(done, total, tensor.name)
            writer.write_tensor_data(_encoded(tensor, types[tensor.name]))
            done += _num_bytes(tensor, types[tensor.name])
        if progress is not None:
            progress(total, total, "")
        for file in writer.fout or ():
            fsync_file(file)
    finally:
        writer.close()


def _add_keys(writer: gguf.GGUFWriter, model: Layout, vocabulary: Vocabulary, file_type: Type, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[file_type])
    if file_type is Type.Q8_0:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in model.keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{model.name}.{key}", value)  # type: ignore[arg-type]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for kind, index in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", index)
    writer.add_add_bos_token(vocabulary.added[0])
    writer.add_add_eos_token(vocabulary.added[1])
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


# -------------------------------------------------------------------------------------------------- numbers


def _type_of(tensor: Tensor, wanted: Type) -> Type:
    if len(tensor.shape) == 1 or tensor.name in _ALWAYS_F32:
        return Type.F32
    return Type.F16 if wanted is Type.Q8_0 and tensor.shape[-1] % _Q8_0_BLOCK else wanted


def _num_bytes(tensor: Tensor, kind: Type) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(tensor.shape, dtype=np.int64)) // block * size


def _encoded(tensor: Tensor, kind: Type) -> Array:
    """The values of one tensor as they lie in the file.

    Raises:
        CheckpointError: they are not finite, or too large.
    """
    values = np.ascontiguousarray(tensor.values())
    largest = max(abs(float(values.min())), abs(float(values.max())))
    if not np.isfinite(largest):
        raise CheckpointError(f"{tensor.name} holds NaN or infinity", "export an earlier checkpoint of the run")
    limit = {Type.F16: _LARGEST_F16, Type.Q8_0: 127 * _LARGEST_F16}.get(kind)
    if limit is not None and largest > limit:
        raise CheckpointError(
            f"{tensor.name} has a value of {largest:.4g}, f16 ends at {_LARGEST_F16:g}", "export with --type f32"
        )
    encoded: Array = quants.quantize(values, kind)
    return encoded


def _refuse_too_much(model: Layout, types: dict[str, Type], folder: Path) -> None:
    needed = sum(_num_bytes(tensor, types[tensor.name]) for tensor in model.tensors)
    if needed > (free := shutil.disk_usage(folder).free):
        raise AutomodelError(
            f"{folder} has room for {binary_size(free)}, the file takes {binary_size(needed)}",
            "free some space, or use --type f16 or q8_0",
        )


# ------------------------------------------------------------------------------------------------ Modelfile


def modelfile(file: str, vocabulary: Vocabulary, context: int) -> str:
    """What ``ollama create NAME -f MODELFILE`` reads: where the weights are, how a chat is written, and sampling.

    Ollama has templates of its own language; ChatML is written in it, others it knows from the file, or not.
    """
    lines = [f"FROM ./{file}"]
    if vocabulary.chat_template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif vocabulary.is_chatml:
        lines.append(f'TEMPLATE """{_CHATML_FOR_OLLAMA}"""')
    else:
        lines.append("# TEMPLATE: that of the model is not ChatML; write it in Ollama's language if answers are odd")
    # A tokenizer from a stranger spells its tokens as it likes: none may begin a line of its own.
    lines += [f'PARAMETER stop "{stop}"' for stop in vocabulary.stops if stop.isprintable() and '"' not in stop]
    lines += ["PARAMETER temperature 0.9", "PARAMETER top_k 200", f"PARAMETER num_ctx {context}"]
    return "\n".join(lines) + "\n"
