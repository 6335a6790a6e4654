"""Set-up of a pretraining run: data, model, machine, run folder, weights; a run and its dry run go the same way."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import replace
from pathlib import Path

from automodel_cli import device as this_machine
from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly import facts as run_facts
from automodel_cli.assembly import initial_weights, mirror, training
from automodel_cli.assembly import model as model_assembly
from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.facts import Facts
from automodel_cli.assembly.hub.uploads import check_upload
from automodel_cli.assembly.machine import batch_size
from automodel_cli.assembly.machine import memory as memory_assembly
from automodel_cli.assembly.machine.fast_path import FastPath, choose_fast_path
from automodel_cli.assembly.optimizer import build_optimizer, build_schedule
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.run_folder import (
    WHAT,
    check_run_folder,
    find_checkpoint,
    open_run_folder,
    unused,
)
from automodel_cli.assembly.scoring.during_training import build_evaluation
from automodel_cli.assembly.tokenizer import run_tokenizer
from automodel_cli.assembly.trackers import check_trackers
from automodel_cli.assembly.training_length import plan_training_length
from automodel_cli.checkpoint import layout, nested_runs
from automodel_cli.checkpoint.all_ranks import all_ranks, on_rank_zero
from automodel_cli.checkpoint.load_step import check_fits, position_of
from automodel_cli.config.horizon import horizon_of
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.interface import source_of
from automodel_cli.data.position import check_plan
from automodel_cli.distributed.heartbeat import Heartbeat
from automodel_cli.distributed.parallelize import ParallelModel
from automodel_cli.distributed.world import World
from automodel_cli.errors import DataError
from automodel_cli.processes import command_started
from automodel_cli.recipes.pretraining.run import NO_OPTIONS, LoadedRun, OpenedRun, Run, RunOptions, RunPlan
from automodel_cli.recipes.pretraining.summary import show_summary
from automodel_cli.train.compiling import share_cache
from automodel_cli.train.preemption import StopRequest
from automodel_cli.train.state import TrainState


def build_run(cfg: PretrainConfig, world: World, reporter: Reporter, options: RunOptions = NO_OPTIONS) -> Run:
    """Build everything that training needs and take up an earlier checkpoint, if the run folder has one.

    The run folder is held from here to the end of training: a second run in it is refused. Every rank calls it; only
    rank 0 speaks, logs, and holds the folder.
    """
    heartbeat, folder = Heartbeat(world), Path(cfg.checkpoint.checkpoint_dir)
    reporter = reporter if world.is_main else Reporter()
    with contextlib.ExitStack() as claim, heartbeat.collective_errors(lambda: "during set-up"):
        if cfg.checkpoint.enabled:
            on_rank_zero(world, lambda: claim.enter_context(layout.run_lock(folder)), what=WHAT)
            mirror.bring_back(cfg, world, fresh=options.fresh, say=reporter.say)
        run = _begin(plan_run(cfg, world, reporter, options), heartbeat)
        return replace(run, claim=claim.pop_all())


def show_plan(
    cfg: PretrainConfig,
    reporter: Reporter,
    options: RunOptions = NO_OPTIONS,
    *,
    processes: int | None = None,
) -> RunPlan:
    """``--dry-run``: show the plan of a run and change nothing.

    ``processes``: that it would have; None: as a launcher has started.
    """
    folder = Path(cfg.checkpoint.checkpoint_dir)
    if cfg.checkpoint.enabled:
        layout.refuse_unusable(folder)
    plan = plan_run(cfg, world_assembly.planned(cfg, processes), reporter, options)
    brought = mirror.fetched_by_a_run(cfg, fresh=options.fresh) if cfg.checkpoint.enabled else None
    begins = f"would resume {brought} of {cfg.checkpoint.mirror}" if brought else "not made in a dry run"
    show_summary(plan, f"would resume {plan.checkpoint}" if plan.checkpoint else begins)
    if cfg.checkpoint.enabled and options.fresh and nested_runs.files_of_run(folder):
        reporter.say(f"would move the earlier run to {unused(folder)}")
    return plan


def plan_run(cfg: PretrainConfig, world: World, reporter: Reporter, options: RunOptions) -> RunPlan:
    """All that can be refused before there are weights, the cheapest first; nothing is changed on the disk."""
    plan = _plan(_load(_open(cfg, world, reporter, options)))
    if (checkpoint := plan.checkpoint) is not None:
        all_ranks(world, lambda: _check_resume(plan, checkpoint), what=f"loading {checkpoint}")
    steps = plan.training_length.known_steps
    source_of(plan.dataset).check_run(None if steps is None else plan.loader.sizes.samples(steps))
    return plan


def _open(cfg: PretrainConfig, world: World, reporter: Reporter, options: RunOptions) -> OpenedRun:
    """Find data, model and checkpoint, and see that the first two fit."""
    stop = StopRequest(cfg.step_scheduler.preemption_signal)
    deadline = training.build_deadline(cfg, started=command_started())
    this_machine.bound_the_heap()
    dataset = data_assembly.build_dataset(cfg, cfg.dataset, trust=options.trust)
    tokenizer = run_tokenizer(cfg, dataset)
    memory = memory_assembly.probe_device_memory(world)
    model = model_assembly.build_model(cfg.model, seed=cfg.rng_seed, trust=options.trust, on_meta=world.size > 1)
    seq_len = data_assembly.row_length(cfg, dataset, tokenizer, model)
    checkpoint = find_checkpoint(cfg, world, fresh=options.fresh, say=reporter.say)
    return OpenedRun(
        cfg=cfg,
        options=options,
        world=world,
        reporter=reporter,
        stop=stop,
        deadline=deadline,
        dataset=dataset,
        tokenizer=tokenizer,
        model=model,
        seq_len=seq_len,
        memory=memory,
        checkpoint=checkpoint,
        stored=Facts() if checkpoint is None else Facts.read(checkpoint),
    )


def _load(opened: OpenedRun) -> LoadedRun:
    """Choose the size of micro-batches, and put loaders around the data sets."""
    world, model, trust, say = opened.world, opened.model, opened.options.trust, opened.reporter.say
    local_batch = batch_size.choose(
        opened.cfg, model, world, opened.memory, seq_len=opened.seq_len, stored=opened.stored
    )
    cfg = batch_size.settled(opened.cfg, local_batch)
    loader = data_assembly.build_train_loader(cfg, opened.dataset, world, trust=trust)
    val_sets = data_assembly.build_eval_sets(cfg, world, trust=trust)
    for name, (held_out, _) in val_sets.items():
        data_assembly.check_fits(held_out, model, what=f"validation set {name}")
    evaluation = build_evaluation(cfg, model, opened.tokenizer, say)
    training_length = plan_training_length(
        horizon=horizon_of(cfg),
        num_epochs=cfg.step_scheduler.num_epochs,
        samples=data_assembly.samples_in_epochs(cfg, loader, world, say),
        sizes=loader.sizes,
        seq_len=opened.seq_len,
    )
    return opened.grown(
        LoadedRun,
        cfg=cfg,
        local_batch=local_batch,
        loader=loader,
        val_sets=val_sets,
        evaluation=evaluation,
        training_length=training_length,
    )


def _plan(loaded: LoadedRun) -> RunPlan:
    """Choose the fast path, and build what an update is made of, for a model that has no weights yet."""
    cfg, world, model, options = loaded.cfg, loaded.world, loaded.model, loaded.options
    if cfg.compile.shared_cache:
        share_cache()
    chosen = choose_fast_path(
        cfg,
        device=world.device,
        training_length=loaded.training_length,
        model=model,
        rows=cfg.step_scheduler.local_rows,
        seq_len=loaded.seq_len,
        stored=loaded.stored.fast_path,
        processes=world.size,
    )
    fast_path = FastPath(**world.broadcast(dataclasses.asdict(chosen)))
    fast_path.apply(model)
    this_machine.configure_process(world.device, threads=fast_path.threads)
    head_loss = training.build_head_loss(cfg, fast_path, trust=options.trust)
    training.check_objective(source_of(loaded.dataset), head_loss, loaded.val_sets)
    scaler = training.build_scaler(fast_path, world.device)
    world_assembly.check_spread(cfg, model, world)
    check_run_folder(cfg, model, world, fresh=options.fresh)
    check_upload(cfg, model)
    check_trackers(cfg)
    if loaded.checkpoint is None:
        initial_weights.check_weights(
            model, loaded.tokenizer, init_from=cfg.init_from, any_function=cfg.init_from_any_function
        )
    optimizer = build_optimizer(cfg, model, world, fast_path, trust=options.trust)
    return loaded.grown(
        RunPlan,
        fast_path=fast_path,
        head_loss=head_loss,
        scaler=scaler,
        optimizer=optimizer,
        schedule=build_schedule(cfg, optimizer, loaded.training_length.total_steps),
        average_rule=training.average_rule(cfg, loaded.training_length),
    )


def _check_resume(plan: RunPlan, checkpoint: Path) -> None:
    """Find out before anything is changed that this run can go on from the checkpoint."""
    change = _data_change(plan, checkpoint)
    run_facts.refuse_other_run(plan.stored, plan.describe(), checkpoint, other_data=change)
    loaded = check_fits(checkpoint, model=plan.model, optimizer=plan.optimizer, average=plan.average_rule is not None)
    training.restored_state(loaded)
    if not change:
        check_plan(loaded.loader_state, plan.loader.plan)


def _data_change(plan: RunPlan, checkpoint: Path) -> bool:
    """Whether the run goes on with other data than the checkpoint's, which is shown and has to be accepted."""
    change = plan.loader.continue_from(position_of(checkpoint))
    if change is None:
        return False
    plan.reporter.columns(f"Data from {checkpoint.name} on", change.headings, change.rows)
    if not (plan.options.accept_data_change or plan.cfg.checkpoint.accept_data_change):
        raise DataError(
            f"the mixture is not that of {checkpoint}",
            "--accept-data-change goes on as the table says; or restore dataset, or start over with --fresh",
        )
    return True


def _begin(plan: RunPlan, heartbeat: Heartbeat) -> Run:
    """Make room in the run folder, put the model over the ranks, and give it weights."""
    cfg, world = plan.cfg, plan.world
    checkpointer = open_run_folder(cfg, world, fresh=plan.options.fresh, say=plan.reporter.say)
    policy = world_assembly.parallel_config(cfg, plan.model, plan.fast_path)
    parallel = ParallelModel(plan.model, world, policy)
    if plan.fast_path.compile and not parallel.to_compile(plan.fast_path.compile_scope):
        plan = _without_compile(plan)
    init_from = cfg.init_from if plan.checkpoint is None else None
    weights_from = initial_weights.init_or_load_weights(
        plan.model,
        init_from=init_from,
        seed=cfg.rng_seed,
        device=world.device,
        any_function=cfg.init_from_any_function,
        known=initial_weights.known_ids(init_from, plan.model, plan.tokenizer),
        world=world,
    )
    parallel.wrap_for_training()
    # Anew: spreading and weights have put other parameters into the model.
    optimizer = build_optimizer(cfg, plan.model, world, plan.fast_path, trust=plan.options.trust)
    plan = replace(plan, optimizer=optimizer)
    run = plan.grown(
        Run,
        facts=plan.describe(),
        checkpointer=checkpointer,
        parallel=parallel,
        average=training.build_average(plan.model, plan.average_rule),
        state=TrainState(),
        heartbeat=heartbeat,
        claim=contextlib.ExitStack(),
    )
    if run.checkpoint is not None:
        run = _restored(run, run.checkpoint)
        weights_from = f"{run.checkpoint}, step {run.state.step}"
    show_summary(run, weights_from)
    return run


def resumed(run: Run, checkpoint: Path) -> Run:
    """``run`` with weights, optimizer state, position in the data and counters of a checkpoint.

    Raises:
        CheckpointError: it is of another run, or damaged.
    """
    run_facts.refuse_other_run(Facts.read(checkpoint), run.facts, checkpoint)
    return _restored(run, checkpoint)


def _restored(run: Run, checkpoint: Path) -> Run:
    averages = None if run.average is None else run.average.tensors
    loaded = run.checkpointer.load(checkpoint, model=run.model, optimizer=run.optimizer, average=averages)
    run.loader.load_state_dict(loaded.loader_state)
    training.restore_scaler(run.scaler, loaded.state.get("scaler"), checkpoint)
    for line in (*run_facts.changes(loaded, run.facts, run.cfg), training.restore_average(run.average, loaded)):
        if line is not None:
            run.reporter.say(line)
    return replace(run, state=training.restored_state(loaded), checkpoint=checkpoint)


def _without_compile(plan: RunPlan) -> RunPlan:
    plan.reporter.say("note: torch.compile stays off: it cannot follow tensor parallel, or bf16 over ranks on a CPU")
    training.unfuse(plan.head_loss)
    return replace(plan, fast_path=replace(plan.fast_path, compile=False))
