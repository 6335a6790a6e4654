"""What a training step will need of the device's memory, and what is free there; before anything is trained."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from automodel_cli import device as this_machine
from automodel_cli.assembly.machine.fast_path import StepPath
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.aliases import present_name
from automodel_cli.config.targets.target import Target
from automodel_cli.distributed.world import World
from automodel_cli.models.interface import CausalLM
from automodel_cli.sizing.memory import DEFAULT_MOMENTS, PeakMemory, StepPlan, moments_of, muon_bytes_of, peak_memory
from automodel_cli.text import binary_size
from automodel_cli.train.losses import default_chunk_tokens

# Numbers that torch's optimizers keep of each weight. Those that are not listed count as two, the most of these.
_MATMUL_TOKENS = 1024  # ``models.layers.shared.attend_auto``: longer sequences go through SDPA


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device before the model was built: all, free for this rank, and (CPU) held by the process itself."""

    total: int
    free: int
    resident: int = 0

    def fits(self, peak: PeakMemory, share: float = 1.0) -> bool:
        """Whether what ``peak`` adds to what the process had fits into ``share`` of what was free."""
        return peak.total - self.resident <= share * self.free


def probe_device_memory(world: World) -> DeviceMemory | None:
    """What the device of this rank has; None where that is not known. Every rank calls it, before the model is built.

    Ranks of one machine share its CPU memory equally.
    """
    found = this_machine.device_memory(world.device)
    if world.device.type != "cpu":
        return None if found is None else DeviceMemory(*found)
    hosts = world.gather(socket.gethostname())
    resident = this_machine.resident_bytes()
    if found is None or resident is None:
        return None
    total, free = found
    return DeviceMemory(total, free // hosts.count(socket.gethostname()), resident)


def predict(
    cfg: PretrainConfig,
    model: CausalLM,
    world: World,
    path: StepPath,
    *,
    seq_len: int,
    local_batch_size: int,
    resident: int = 0,
    tasks: tuple[int, int] = (0, 0),
) -> PeakMemory | None:
    """The peak of an update, a validation or an evaluation on this rank; None where the model's shape is not known.

    Args:
        resident: what the process had before the model was built.
        tasks: tokens of a forward of in-context tasks and samples, and of its longest row.
    """
    shape = model.shape()
    if shape is None:
        return None
    section, device, many = cfg.distributed, world.device.type, world.size > 1
    plan = StepPlan(
        seq_len=seq_len,
        local_batch_size=local_batch_size,
        precision=path.precision,
        residual_bytes=2 if path.residual == "bf16" else 4,
        compiled=path.compile,
        whole=path.compile_scope == "model" and not many,
        head_loss="chunked" if path.head_loss == ("chunked" if model.direct_head else "chunked_capped") else "plain",
        softcap=bool(model.softcap),
        chunk_tokens=chunk_tokens(cfg.loss_fn) or default_chunk_tokens(shape.padded_vocab_size, device),
        z_loss=bool(cfg.loss_fn and cfg.loss_fn.arguments.get("z_loss_weight")),
        recompute=section.recompute,
        attention=attention_keeps(model, device=device, precision=path.precision, seq_len=seq_len),
        dropout=model.has_dropout(),
        moments=moments(cfg.optimizer),
        muon_bytes=muon_bytes_of(path.orthogonalization),
        ranks=world.size,
        accumulates=max(cfg.step_scheduler.global_batch_sizes) > local_batch_size * world.dp_world,
        device=device,
        strategy=("ddp" if section.strategy == "ddp" else "fsdp2") if many else None,
        shards=world.axis_size("dp_shard") * world.axis_size("cp"),
        tp=world.axis_size("tp"),
        cp=world.axis_size("cp"),
        offload=many and device != "cpu" and section.offload_policy is not None,
        bucket_view=section.gradient_as_bucket_view,
        resident_bytes=resident,
        validates=bool(cfg.validation_datasets),
        task_tokens=tasks[0],
        task_row=tasks[1],
        staged=cfg.checkpoint.is_async and cfg.checkpoint.enabled,
        averages=cfg.ema is not None,
    )
    return peak_memory(shape, plan)


def chunk_tokens(loss_fn: Target | None) -> int | None:
    """What a ``loss_fn:`` section says of chunks."""
    given = loss_fn.arguments.get("chunk_tokens") if loss_fn is not None else None
    return given if isinstance(given, int) else None


def moments(optimizer: Target | None) -> int:
    """Numbers that the optimizer keeps of each weight; two where it is not known."""
    if optimizer is None:
        return DEFAULT_MOMENTS
    return moments_of(_name(optimizer), optimizer.arguments)


def numbers_kept(cfg: PretrainConfig, model: CausalLM) -> int:
    """Numbers that a checkpoint holds: weights, what the optimizer keeps of them, and their average."""
    roles, each = model.param_roles(), 1 + moments(cfg.optimizer) + (cfg.ema is not None)
    less_of_matrices = int(cfg.optimizer is not None and _name(cfg.optimizer) == "muon_adamw")
    sizes = ((roles[name], parameter.numel()) for name, parameter in model.named_parameters())
    return sum(size * (each - less_of_matrices * (role == "matrix")) for role, size in sizes)


def _name(optimizer: Target) -> str:
    return present_name(optimizer.name).rpartition(".")[2]


def attention_keeps(model: CausalLM, *, device: str, precision: str, seq_len: int) -> str:
    """``StepPlan.attention`` of this model here: what its attention keeps of the scores."""
    name = model.attn_implementation
    if name in ("eager", "matmul"):
        return name
    if name == "auto" and device == "cpu" and precision == "bf16" and seq_len <= _MATMUL_TOKENS:
        return "matmul"
    if device == "cpu" and model.has_dropout():  # SDPA on a CPU has no fused kernel with dropout
        return "eager"
    return "linear"


def row(peak: PeakMemory | None, memory: DeviceMemory | None) -> tuple[str, str]:
    """The line of the start-up table."""
    if peak is None:
        return "memory", "n/a: the shape of this model is not known"
    parts = ", ".join(f"{name} {binary_size(size)}" for name, size in peak.parts().items())
    line = f"about {binary_size(peak.total)} at the peak ({parts})"
    if memory is None:
        return "memory", line
    # What is free is meant as the user sees it: before this run, whose process already has its share.
    free = memory.free + memory.resident
    return "memory", f"{line}; the device has {binary_size(memory.total)}, {binary_size(free)} free"


def notes(peak: PeakMemory | None, memory: DeviceMemory | None) -> list[str]:
    """A warning where the run will not fit."""
    if peak is None or memory is None or memory.fits(peak):
        return []
    return [
        f"a step needs about {binary_size(peak.total)} of memory and "
        f"{binary_size(memory.free + memory.resident)} are free: lower "
        "step_scheduler.local_batch_size (or set it to auto), or set distributed.activation_checkpointing"
    ]
