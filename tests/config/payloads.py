"""Configurations that try to run code nobody trusted: data for `test_attacks`.

Each payload is a section and what stands in it (or whole YAML, overrides, files). ``CANARY`` becomes the path of a file
that must not appear: the payload's command, source or pickle creates it. Names inside torch, transformers, datasets
and numpy are there on purpose: libraries that must be importable hold callables that run commands or evaluate text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TOUCH = "touch CANARY"
SOURCE = "open('CANARY', 'w').close()"
SHELL = ["touch", "CANARY"]


@dataclass(frozen=True)
class Payload:
    """One attempt. ``arguments`` are the other keys of the section; ``yaml`` replaces the whole file."""

    name: str
    section: str = "model"
    arguments: dict = field(default_factory=dict)
    yaml: str = ""
    overrides: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()


def _of(section: str, **targets: dict) -> list[Payload]:
    return [Payload(name, section, arguments) for name, arguments in targets.items()]


STANDARD_LIBRARY = [
    Payload("os.system", "model", {"command": TOUCH}),
    Payload("posix.system", "dataset", {"command": TOUCH}),
    Payload("os.popen", "loss_fn", {"cmd": TOUCH}),
    Payload("os.execvp", "model", {"file": "touch", "args": SHELL}),
    Payload("os.spawnlp", "model", {"mode": 0, "file": "touch"}),
    Payload("os.posix_spawnp", "model", {"path": "touch", "argv": SHELL, "env": {}}),
    Payload("subprocess.run", "model", {"args": SHELL}),
    Payload("subprocess.Popen", "optimizer", {"args": SHELL}),
    Payload("subprocess.check_output", "dataset", {"args": SHELL}),
    Payload("subprocess.getoutput", "tokenizer", {"cmd": TOUCH}),
    Payload("builtins.eval", "model", {"source": SOURCE}),
    Payload("builtins.exec", "model", {"source": SOURCE}),
    Payload("builtins.open", "model", {"file": "CANARY", "mode": "w"}),
    Payload("builtins.__import__", "model", {"name": "evil_module"}),
    Payload("builtins.getattr", "model", {}),
    Payload("io.open", "model", {"file": "CANARY", "mode": "w"}),
    Payload("pathlib.Path.touch", "model", {"self": "CANARY"}),
    Payload("pathlib.Path", "model", {}),
    Payload("shutil.copyfile", "model", {"src": "evil_module.py", "dst": "CANARY"}),
    Payload("importlib.import_module", "model", {"name": "evil_module"}),
    Payload("runpy.run_path", "model", {"path_name": "evil_module.py"}),
    Payload("runpy.run_module", "model", {"mod_name": "evil_module"}),
    Payload("pickle.loads", "model", {"data": "x"}),
    Payload("pty.spawn", "model", {"argv": SHELL}),
    Payload("timeit.timeit", "model", {"stmt": SOURCE, "number": 1}),
    Payload("cProfile.run", "model", {"statement": SOURCE}),
    Payload("pdb.run", "model", {"statement": SOURCE}),
    Payload("code.interact", "model", {}),
    Payload("ctypes.CDLL", "model", {"name": "evil.so"}),
    Payload("logging.config.dictConfig", "model", {"config": {"version": 1}}),
    Payload("functools.partial", "model", {}),
    Payload("types.FunctionType", "model", {}),
    Payload("asyncio.create_subprocess_shell", "model", {"cmd": TOUCH}),
    Payload("multiprocessing.Process", "model", {}),
    Payload("webbrowser.open", "model", {"url": "file:///"}),
    Payload("yaml.unsafe_load", "model", {"stream": "!!python/object/apply:os.system ['touch CANARY']"}),
]

INSIDE_LIBRARIES = [
    # torch
    Payload("torch.utils.collect_env.run", "model", {"command": TOUCH}),
    Payload("torch.utils.collect_env.run", "optimizer", {"command": TOUCH}),
    Payload("torch.utils.collect_env.subprocess.run", "model", {"args": SHELL}),
    Payload("torch.utils.benchmark.Timer", "model", {"stmt": SOURCE}),
    Payload("torch.utils.benchmark.Timer.timeit", "model", {"number": 1}),
    Payload("torch.utils.benchmark.timer.timeit.timeit", "model", {"stmt": SOURCE, "number": 1}),
    Payload("torch.hub.load", "model", {"repo_or_dir": ".", "model": "run", "source": "local"}),
    Payload("torch.hub.load_state_dict_from_url", "model", {"url": "file://CANARY"}),
    Payload("torch.hub.os.system", "model", {"command": TOUCH}),
    Payload("torch.hub.import_module", "model", {"name": "evil_module", "path": "evil_module.py"}),
    Payload("torch.load", "model", {"f": "evil.pkl", "weights_only": False}),
    Payload("torch.serialization.load", "dataset", {"f": "evil.pkl", "weights_only": False}),
    Payload("torch.save", "model", {"obj": 1, "f": "CANARY"}),
    Payload("torch.jit.load", "model", {"f": "evil.pt"}),
    Payload("torch.jit.save", "model", {}),
    Payload("torch.package.PackageImporter", "model", {"file_or_buffer": "evil.pt"}),
    Payload("torch.ops.load_library", "model", {"path": "evil.so"}),
    Payload("torch.classes.load_library", "model", {"path": "evil.so"}),
    Payload("torch.utils.cpp_extension.load_inline", "model", {"name": "x", "cpp_sources": "int x;"}),
    Payload("torch.utils.cpp_extension.subprocess.check_call", "model", {"args": SHELL}),
    Payload("torch.utils.data.DataLoader.__init__.__globals__", "dataloader", {}),
    Payload("torch.utils.data.datapipes.iter.Mapper", "dataset", {"fn": SOURCE}),
    Payload("torch.multiprocessing.spawn", "model", {"fn": "evil_module.run"}),
    Payload("torch.distributed.run.main", "model", {"args": ["evil_module.py"]}),
    Payload("torch.distributed.launch.main", "model", {"args": ["evil_module.py"]}),
    Payload("torch.utils.model_zoo.load_url", "model", {"url": "file://CANARY"}),
    Payload("torch.fx.GraphModule", "model", {}),
    Payload("torch.nn.Module.apply", "loss_fn", {}),
    Payload("torch.nn.modules.module.os.system", "loss_fn", {"command": TOUCH}),
    Payload("torch.optim.lr_scheduler.LambdaLR", "optimizer", {"lr_lambda": SOURCE}),
    Payload("torch.optim.optimizer.Optimizer.register_step_pre_hook", "optimizer", {}),
    Payload("torch.optim.AdamW.__init__.__globals__.get", "optimizer", {}),
    Payload("torch.os.system", "model", {"command": TOUCH}),
    Payload("torch.testing._internal.common_utils.run_tests", "model", {}),
    Payload("torch._C._jit_set_profiling_executor", "model", {}),
    Payload("torch.compile", "loss_fn", {"model": SOURCE}),
    # transformers
    Payload("transformers.pipeline", "model", {"task": "text-generation", "trust_remote_code": True}),
    Payload("transformers.GenerationConfig", "model", {}),
    Payload("transformers.AutoModelForCausalLM.register", "model", {}),
    Payload("transformers.AutoModelForCausalLM.from_config.__globals__", "model", {}),
    Payload("transformers.GPT2LMHeadModel.push_to_hub", "model", {"repo_id": "x"}),
    Payload("transformers.GPT2LMHeadModel.save_pretrained", "model", {"save_directory": "CANARY"}),
    Payload(
        "transformers.dynamic_module_utils.get_class_from_dynamic_module",
        "model",
        {"class_reference": "evil_module.Evil", "pretrained_model_name_or_path": "."},
    ),
    Payload("transformers.utils.hub.os.system", "model", {"command": TOUCH}),
    Payload("transformers.modeling_utils.os.system", "model", {"command": TOUCH}),
    Payload("transformers.models.auto.auto_factory.importlib.import_module", "model", {"name": "evil_module"}),
    Payload("transformers.testing_utils.execute_subprocess_async", "model", {"cmd": SHELL}),
    Payload("transformers.integrations.hub_kernels.load_and_register_attn_kernel", "model", {}),
    # datasets
    Payload("datasets.load_dataset", "dataset", {"path": "evil_dataset", "trust_remote_code": True}),
    Payload("datasets.load_from_disk", "dataset", {"dataset_path": "."}),
    Payload("datasets.Dataset.from_generator", "dataset", {"generator": "evil_module.run"}),
    Payload("datasets.IterableDataset.from_generator", "dataset", {"generator": "evil_module.run"}),
    Payload("datasets.load.import_main_class", "dataset", {"module_path": "evil_module"}),
    Payload("datasets.config.importlib.import_module", "dataset", {"name": "evil_module"}),
    Payload("datasets.utils.file_utils.os.system", "dataset", {"command": TOUCH}),
    # numpy
    Payload("numpy.load", "dataset", {"file": "evil.npy", "allow_pickle": True}),
    Payload("numpy.f2py.compile", "model", {"source": "x"}),
    Payload("numpy.testing.rundocs", "model", {"filename": "evil_module.py"}),
    Payload("numpy.testing.runstring", "model", {"astr": SOURCE, "dict": {}}),
    Payload("numpy.ctypeslib.load_library", "model", {"libname": "evil", "loader_path": "."}),
    Payload("numpy.vectorize", "model", {"pyfunc": SOURCE}),
    Payload("numpy.lib.npyio.NpzFile", "dataset", {"fid": "evil.npz"}),
    Payload("numpy.fromfile", "dataset", {"file": "evil.npy"}),
]

THROUGH_ALIASES = [
    Payload("logging.os.system", "model", {"command": TOUCH}),
    Payload("shutil.os.system", "model", {"command": TOUCH}),
    Payload("random._os.system", "model", {"command": TOUCH}),
    Payload("automodel_cli.files.os.system", "model", {"command": TOUCH}),
    Payload("automodel_cli.config.targets.resolution.importlib.import_module", "model", {"name": "evil_module"}),
    Payload("automodel_cli.config.targets.resolution.load_file", "model", {"path": "evil_module.py"}),
    Payload("automodel_cli.config.targets.instantiate.instantiate", "model", {}),
    Payload("automodel_cli.models.gpt2.torch.hub.load", "model", {"repo_or_dir": ".", "source": "local"}),
    Payload("automodel_cli.models.gpt2.build_gpt2_model.__globals__", "model", {}),
    Payload("nemo_automodel.os.system", "model", {"command": TOUCH}),
    Payload("nemo_AutoModel.components.models.gpt2.os.system", "model", {"command": TOUCH}),
    Payload("nemo_automodel.x.y.subprocess.run", "dataset", {"args": SHELL}),
    Payload("nemo_automodel.evil_module.run", "model", {}),
    Payload("torchdata.stateful_dataloader.os.system", "dataloader", {"command": TOUCH}),
    Payload("torch.optim.adamw.torch.hub.load", "optimizer", {"repo_or_dir": ".", "source": "local"}),
    Payload("torch.optim.adamw.Tensor", "optimizer", {}),
]

FILES_AND_MODULES = [
    Payload("evil_module.run", "model"),
    Payload("evil_module.Evil", "dataset"),
    Payload("evil_package.inner.run", "model"),
    Payload("evil_module.py:run", "model"),
    Payload("./evil_module.py:run", "optimizer"),
    Payload("CWD/evil_module.py:Evil", "dataset"),
    Payload("innocent_link.py:run", "loss_fn"),
    Payload("../CWDNAME/evil_module.py:run", "model"),
    Payload("evil_module.py:run", "model", trust=("innocent.py",)),
    Payload("innocent_link.py:run", "model", trust=("innocent.py",)),
    Payload("evil_module.run", "model", trust=("innocent",)),
    Payload("innocent.evil", "model", trust=("innocent",)),
    Payload("innocent.os.system", "model", {"command": TOUCH}, trust=("innocent",)),
    Payload("innocent.system", "model", {"command": TOUCH}, trust=("innocent",)),
    Payload("innocent.py:system", "model", {"command": TOUCH}, trust=("innocent.py",)),
    Payload("innocent.f.__globals__", "model", trust=("innocent",)),
    Payload("os.system", "model", {"command": TOUCH}, trust=("innocent", "os.path")),
]

_OK = "automodel_cli.models.gpt2.build_gpt2_model"
_HF = "transformers.AutoModelForCausalLM"
_BAD = {"_target_": "os.system", "command": TOUCH}
_EVAL = {"_target_": "builtins.eval", "source": SOURCE}

NESTED = [
    Payload(f"{_HF}.from_config", "model", {"config": _BAD}),
    Payload(f"{_HF}.from_config", "model", {"config": {"_target_": "transformers.GPT2Config", "n_layer": _EVAL}}),
    Payload(f"{_HF}.from_config", "model", {"config": {"_target_": "transformers.GPT2Config", "x": [{"y": _BAD}]}}),
    Payload(f"{_HF}.from_config", "model", {"config": [_BAD]}),
    Payload(_OK, "model", {"n_layer": _BAD}),
    Payload(_OK, "model", {"extra": {"deep": {"deeper": [1, [2, _BAD]]}}}),
    Payload("automodel_cli.data.nanogpt_dataset.NanogptDataset", "dataset", {"file_pattern": _BAD, "seq_len": 8}),
    Payload(
        "automodel_cli.data.nanogpt_dataset.NanogptDataset",
        "dataset",
        {"file_pattern": [_EVAL], "seq_len": 8},
    ),
    Payload("torch.optim.AdamW", "optimizer", {"lr": _EVAL}),
    Payload("torch.optim.AdamW", "optimizer", {"betas": [_EVAL, 0.9]}),
    Payload("torch.utils.data.DataLoader", "dataloader", {"collate_fn": "os.system"}),
    Payload("torch.utils.data.DataLoader", "dataloader", {"collate_fn": _BAD}),
    Payload("torch.utils.data.DataLoader", "dataloader", {"worker_init_fn": "evil_module.run"}),
    Payload("torch.utils.data.DataLoader", "dataloader", {"worker_init_fn": "evil_module.py:run"}),
    Payload("torch.utils.data.DataLoader", "dataloader", {"sampler": _BAD}),
    Payload("torch.utils.data.DataLoader", "dataloader", {"multiprocessing_context": _EVAL}),
    Payload("torch.nn.CrossEntropyLoss", "loss_fn", {"weight": _EVAL}),
    Payload("os.system", "validation_dataset", {"command": TOUCH}),
    Payload("os.system", "validation_dataset_other", {"command": TOUCH}),
    Payload("torch.utils.collect_env.run", "validation_dataloader", {"command": TOUCH}),
]

REMOTE_CODE = [
    Payload(
        f"{_HF}.from_pretrained",
        "model",
        {"pretrained_model_name_or_path": "evil_hub", "trust_remote_code": True},
    ),
    Payload(
        f"{_HF}.from_pretrained",
        "model",
        {"pretrained_model_name_or_path": "evil_hub", "trust_remote_code": "1"},
    ),
    Payload(f"{_HF}.from_pretrained", "model", {"pretrained_model_name_or_path": "evil_hub"}),
    Payload(
        f"{_HF}.from_config",
        "model",
        {
            "config": {
                "_target_": "transformers.AutoConfig.from_pretrained",
                "pretrained_model_name_or_path": "evil_hub",
                "trust_remote_code": True,
            }
        },
    ),
    Payload(
        f"{_HF}.from_config",
        "model",
        {
            "trust_remote_code": True,
            "config": {
                "_target_": "transformers.GPT2Config",
                "auto_map": {"AutoModelForCausalLM": "evil_hub--evil.Net"},
            },
        },
    ),
    Payload(
        "transformers.AutoTokenizer.from_pretrained",
        "tokenizer",
        {"pretrained_model_name_or_path": "evil_hub", "trust_remote_code": True},
    ),
    Payload(
        f"{_HF}.from_pretrained",
        "model",
        {"pretrained_model_name_or_path": "evil_pickle", "weights_only": False, "use_safetensors": False},
    ),
    Payload(
        "transformers.GPT2LMHeadModel.from_pretrained",
        "model",
        {"pretrained_model_name_or_path": "evil_pickle"},
    ),
    Payload(
        f"{_HF}.from_config",
        "model",
        {"attn_implementation": "evil/kernel", "config": {"_target_": "transformers.GPT2Config"}},
    ),
    Payload(
        "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
        "model",
        {"pretrained_model_name_or_path": "evil_hub", "trust_remote_code": True},
    ),
    Payload(
        "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
        "model",
        {"pretrained_model_name_or_path": "evil_hub"},
    ),
]

# Texts of YAML 1.2 that libraries take for true, and empty values that they take for false.
NO_BOOLEANS = (
    "no",
    "off",
    "No",
    "FALSE ",
    "false",
    "true",
    "0",
    "1",
    " ",
    "",
    "n",
    1,
    0,
    0.0,
    -0.0,
    1.0,
    [],
    {},
    [0],
)
SWITCHES = (
    "trust_remote_code",
    "weights_only",
    "use_safetensors",
    "use_kernels",
    "allow_all_kernels",
    "from_tf",
)
_CODE = {"pretrained_model_name_or_path": "evil_hub"}
_PICKLE = {"pretrained_model_name_or_path": "evil_pickle"}

DOORS = [
    *(
        Payload(f"{_HF}.from_pretrained", "model", {**source, switch: value})
        for source, switch in (
            (_CODE, "trust_remote_code"),
            (_PICKLE, "weights_only"),
            (_PICKLE, "use_safetensors"),
        )
        for value in NO_BOOLEANS
    ),
    *(
        Payload(
            name,
            "model",
            {
                "config": {
                    "_target_": f"transformers.{config}.from_pretrained",
                    **_CODE,
                    "trust_remote_code": value,
                }
            },
        )
        for value in ("no", "off", "0", " ")
        for name, config in (
            (f"{_HF}.from_config", "AutoConfig"),
            ("transformers.GPT2LMHeadModel", "AutoConfig"),
            ("automodel_cli.models.hf.from_config", "AutoConfig"),
        )
    ),
    *(Payload(f"{_HF}.from_pretrained", "model", {**_PICKLE, switch: "off"}) for switch in SWITCHES),
    Payload("automodel_cli.models.hf.from_pretrained", "model", {**_CODE, "trust_remote_code": "no"}),
    Payload("automodel_cli.models.hf.from_pretrained", "model", {**_PICKLE, "weights_only": []}),
    Payload("automodel_cli.models.hf.from_pretrained", "model", _PICKLE),
    Payload("automodel_cli.models.hf.from_config", "model", {"config": "evil_hub", "trust_remote_code": "off"}),
    Payload("automodel_cli.models.hf.from_config", "model", {"config": "evil_hub"}),
    Payload("transformers.AutoTokenizer.from_pretrained", "tokenizer", {**_CODE, "trust_remote_code": "no"}),
    Payload("transformers.AutoTokenizer.from_pretrained", "tokenizer", {**_CODE, "a_new_door": True}),
    Payload(f"{_HF}.from_pretrained", "model", {**_CODE, "a_new_door": True}),
    Payload(f"{_HF}.from_pretrained", "model", {"pretrained_model_name_or_path": "evil_kernel"}),
    Payload("automodel_cli.models.hf.from_config", "model", {"config": "evil_kernel"}),
    Payload("transformers.AutoModelForImageClassification.from_pretrained", "model", _PICKLE),
    Payload("transformers.TimmBackbone.from_pretrained", "model", _PICKLE),
    Payload(
        f"{_HF}.from_config",
        "model",
        {
            "config": {
                "_target_": "transformers.AutoConfig.for_model",
                "model_type": "gemma3n",
                "vision_config": {
                    "model_type": "timm_wrapper",
                    "model_args": {"checkpoint_path": "evil.pkl"},
                },
            }
        },
    ),
]

_DATA = "dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}\n"
_MODEL = f"model: {{_target_: {_OK}, n_layer: 1}}\n"

BY_OVERRIDE = [
    Payload("", overrides=("--model._target_", "os.system", "--model.command", TOUCH), yaml=_MODEL + _DATA),
    Payload("", overrides=(f"--model={{_target_: os.system, command: '{TOUCH}'}}",), yaml=_DATA),
    Payload("", overrides=("optimizer={_target_: subprocess.run, args: [touch, CANARY]}",), yaml=_MODEL + _DATA),
    Payload("", overrides=("--dataset.file_pattern._target_", "builtins.eval"), yaml=_MODEL + _DATA),
    Payload(
        "",
        overrides=("--model.n_layer", f'{{_target_: builtins.eval, source: "{SOURCE}"}}'),
        yaml=_MODEL + _DATA,
    ),
    Payload("", overrides=("--loss_fn._target_=evil_module.py:run",), yaml=_MODEL + _DATA),
    Payload("", overrides=("--validation_dataset_x._target_", "evil_module.run"), yaml=_MODEL + _DATA),
    Payload("", overrides=("--dataloader.collate_fn", "evil_module.run"), yaml=_MODEL + _DATA),
    *(
        Payload(
            "",
            overrides=(f"--model.trust_remote_code={written}",),
            yaml=f"model: {{_target_: {_HF}.from_pretrained, pretrained_model_name_or_path: evil_hub}}\n" + _DATA,
        )
        for written in ("no", "off", '"false"', '"0"', '" "', "[]", "{}", "0.0", "-0.0")
    ),
]

CLOSED_AND_YAML = [
    Payload("", yaml=_MODEL + _DATA + "compile: {enabled: true, options: {cpp.cxx: [touch, CANARY]}}\n"),
    Payload("", yaml=_MODEL + _DATA + "compile: {options: {cpp.cxx: evil_module.py}}\n"),
    Payload("", yaml=_MODEL + _DATA + "compile: {options: {post_grad_custom_pre_pass: evil_module.run}}\n"),
    Payload("", yaml=_MODEL + _DATA + f"rng: {{_target_: os.system, command: '{TOUCH}'}}\n"),
    Payload("", yaml=_MODEL + _DATA + "distributed: {_target_: evil_module.FSDP2Manager}\n"),
    Payload("", yaml=_MODEL + _DATA + "distributed: {_target_: os.system, tp_size: 1}\n"),
    Payload("", yaml=_MODEL + _DATA + "distributed: {mp_policy: {_target_: evil_module.MixedPrecisionPolicy}}\n"),
    Payload("", yaml=_MODEL + _DATA + "checkpoint: {_target_: torch.hub.load}\n"),
    Payload("", yaml=_MODEL + _DATA + "recipe: {_target_: os.system}\n"),
    Payload("", yaml=_MODEL + _DATA + "recipe: evil_module.py:Recipe\n"),
    Payload("", yaml=_MODEL + _DATA + "wandb: {_target_: os.system}\n"),
    Payload("", yaml=_MODEL + _DATA + "step_scheduler: {max_steps: {_target_: builtins.eval}}\n"),
    Payload("", yaml=_DATA + "model: !!python/object/apply:os.system ['touch CANARY']\n"),
    Payload("", yaml=_DATA + "model:\n  _target_: !!python/name:os.system\n  command: 'touch CANARY'\n"),
    Payload("", yaml=_DATA + "model: !!python/object/new:subprocess.Popen [[touch, CANARY]]\n"),
    Payload("", yaml=_DATA + "model: {_target_: '${AM_EVIL}', command: 'touch CANARY'}\n"),
    Payload("", yaml=_DATA + "x: &x {_target_: os.system, command: 'touch CANARY'}\nmodel: *x\n"),
    Payload("", yaml=_DATA + "model: {<<: {_target_: os.system, command: 'touch CANARY'}}\n"),
    Payload("", yaml=_DATA + "model: {_target_: [os.system], command: 'touch CANARY'}\n"),
    Payload("", yaml=_DATA + "model: {_target_: {_target_: os.system, command: 'touch CANARY'}}\n"),
    Payload("", yaml=_DATA + "model: {_target_: ' os.system ', command: 'touch CANARY'}\n"),
    Payload("", yaml=_DATA + 'model: {_target_: "ｏｓ.system", command: "touch CANARY"}\n'),
    Payload("", yaml=_DATA + 'model: {_target_: "os.system\\n", command: "touch CANARY"}\n'),
]

PAYLOADS = [
    *STANDARD_LIBRARY,
    *INSIDE_LIBRARIES,
    *THROUGH_ALIASES,
    *FILES_AND_MODULES,
    *NESTED,
    *REMOTE_CODE,
    *DOORS,
    *BY_OVERRIDE,
    *CLOSED_AND_YAML,
]
