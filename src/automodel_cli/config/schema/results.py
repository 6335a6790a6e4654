"""Settings of the commands that work on results: eval, inspect-ckpt, plot, generate, export and import."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from automodel_cli.config.schema.base import (
    BatchSize,
    Count,
    Counts,
    Device,
    JsonOutput,
    NotNegative,
    Precision,
    Section,
    Shares,
    TypeName,
    Whole,
    Words,
    ignored,
)
from automodel_cli.config.schema.run_sections import Branch, HubName, License
from automodel_cli.config.schema.training_sections import DEFAULT_SEED


class ModelInput(Section):
    """A model to load, and where to run it."""

    checkpoint: str
    """Checkpoint, run folder (its LATEST is used) or Hugging Face folder."""
    ema: bool = False
    """Use the average of the weights that the checkpoint holds beside the last ones."""
    tokenizer: str | None = None
    """Tokenizer, as a name or folder; null: the checkpoint's own."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda, mps."""


class Scoring(ModelInput, JsonOutput):
    """What both kinds of evaluation take."""

    precision: Precision = "auto"
    """Compute in bf16, fp16 or fp32; auto: as the checkpoint was trained, if the hardware has it."""


class EvaluateConfig(Scoring):
    """Settings of `automodel eval` with token files: how likely a checkpoint finds them."""

    panels: ClassVar = {"Likelihood of token files": "data seq_len intra_document raw_dtype limit_batches bigram"}

    data: tuple[str, ...] = ()
    """Token files, prefixes of .bin and .idx pairs, patterns or folders; each is scored on its own; empty: the
    validation data of the run."""
    batch_size: Count = 8
    """Sequences scored at once."""
    seq_len: Count | None = None
    """Length of a window; null: the length the model was trained on."""
    intra_document: bool | None = None
    """Keep attention within the documents of token files; null: as `dataset.intra_document` was in training."""
    raw_dtype: Literal["uint16", "uint32", "npy"] | None = None
    """Type of the tokens in files without a header (npy: NumPy files of ids); null: as in training, else uint16."""
    limit_batches: Count | None = None
    """Maximum number of batches to score, for each entry of `data`; null: all."""
    output: str | None = None
    """File for the results; null: `results_STEP_DATA.json` in the run folder or export, none in a folder that automodel
    did not write."""
    bigram: str | None = None
    """Training token files for a bigram model, which is scored on the same data for comparison; null: none."""


class TasksConfig(Scoring):
    """Settings of `automodel eval` with `--tasks` or `--harness`: a checkpoint's answers to tasks."""

    panels: ClassVar = {
        "Tasks": "tasks harness harness_path chat_template bundle chat_data chat_answers max_per_task num_fewshot"
    }

    tasks: Words = ()
    """In-context tasks: `core` (22), `gauntlet` (53) or names; chat tasks: `chatcore` (6), `mt_bench`,
    `alpaca_eval` or names; empty: none."""
    harness: Words = ()
    """Tasks of lm-evaluation-harness (`pip install 'automodel-cli[eval]'`); empty: none."""
    harness_path: str | None = None
    """Folder with task files of your own for lm-evaluation-harness; null: none."""
    chat_template: bool = False
    """Wrap the harness's prompts in the tokenizer's chat template."""
    bundle: str = "eval_bundle"
    """Folder with the data of the in-context tasks."""
    chat_data: str | None = None
    """Folder with the rows of the chat tasks, `gsm8k_chat.jsonl` or `.parquet` and so on; null: from the Hub."""
    chat_answers: str = "chat_answers"
    """Folder for the answers to `mt_bench` and `alpaca_eval`, in these suites' own formats."""
    max_per_task: Count | None = None
    """Maximum number of questions per task; null: all."""
    num_fewshot: Whole | None = None
    """Worked examples before each question; null: as published."""
    batch_size: BatchSize = "auto"
    """Sequences scored at once; auto: chosen by their number of tokens."""
    output: str | None = None
    """File for the results; null: `results_STEP_TASKS.json` in the run folder or export, none in a folder that
    automodel did not write."""

    @model_validator(mode="after")
    def _something_to_do(self) -> TasksConfig:
        if not self.tasks and not self.harness:
            raise ValueError("neither `tasks` nor `harness` names anything to evaluate")
        return self


class TrustOptions(Section):
    """What every command takes that loads a checkpoint."""

    trust: tuple[str, ...] = ()
    """Code that may run: the file that built a model of your own; empty: none."""


class EvaluateOptions(TrustOptions):
    """Options of `automodel eval` beside its settings: trust, and an older spelling of `eval download-bundle`."""

    trust: tuple[str, ...] = ()
    """Code that may run: the file that built a model of your own, or a `harness_path`; empty: none."""
    allow_code_execution: bool = False
    """Run programs that the model writes, confined to computing (`humaneval_chat`)."""
    judge_url: str | None = None
    """OpenAI-compatible endpoint that grades `mt_bench` and `alpaca_eval`; its key is AUTOMODEL_JUDGE_KEY in the
    environment; null: answers are written and not graded."""
    judge_model: str | None = None
    """Name of the judge's model; null: none."""
    download_bundle: bool = ignored(False, "it is a command of its own now")
    bundle_url: str | None = ignored(None, "it belongs to eval download-bundle now")
    bundle_sha256: str | None = ignored(None, "it belongs to eval download-bundle now")


class BundleConfig(Section):
    """Settings of `automodel eval download-bundle`."""

    folder: str = "eval_bundle"
    """Folder for the data of the in-context tasks."""
    url: str | None = None
    """Address of the archive; null: the published one."""
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-fA-F]{64}$"), TypeName("64 hexadecimal digits or null")] = None
    """SHA-256 that the archive must have; null: that of the published one."""


class CompareOptions(JsonOutput):
    """Settings of `automodel eval compare`."""

    files: Annotated[tuple[str, ...], Field(min_length=2, max_length=2), TypeName("two results files")]
    """Two results files, A and B."""


class InspectConfig(JsonOutput):
    """Settings of `automodel inspect-ckpt`."""

    path: str = "checkpoints/"
    """Run folder, checkpoint, safetensors file or Hugging Face folder."""
    step: str | None = None
    """Step to look at: a number, LATEST or BEST; null: an overview of all."""
    verify: bool = False
    """Hash every file again and look for NaN and infinity."""
    data: bool = False
    """Show what was read of the training data: of a mixture the windows of each source, through all changes."""
    tree: bool = False
    """Show the run with the branches that were made of it; of a folder with runs all such trees."""
    diff: tuple[str, str] | None = None
    """Two checkpoints to compare: steps of the run folder (a number, LATEST, BEST) or paths; null: none."""

    @field_validator("step", mode="before")
    @classmethod
    def _number_is_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class InspectDataConfig(JsonOutput):
    """Settings of `automodel inspect-data`."""

    run: str
    """Run folder, checkpoint, or the YAML file of a run."""
    step: Count | None = None
    """Update whose batch to show, from 1; null: `samples` says what."""
    samples: Annotated[str | None, Field(pattern=r"^\d{1,16}:\d{1,16}$"), TypeName("FIRST:END")] = None
    """Samples to show instead, FIRST:END as an event of `spikes` names them, END one past the last; null: those of
    `step`."""
    rank: Whole | None = None
    """Only the rows that this data-parallel rank had, of as many as the run has had last; null: all."""
    rows: Count = 3
    """Rows to show; where and in which documents they are is listed of all."""
    full: bool = False
    """Show all of each row's text, of all rows."""
    trust: tuple[str, ...] = ()
    """Code that may run: the file of a data set of your own; empty: none."""

    @model_validator(mode="after")
    def _one_place(self) -> InspectDataConfig:
        if (self.step is None) == (self.samples is None):
            raise ValueError("give `step` or `samples`")
        if self.samples is not None and self.rank is not None:
            raise ValueError("`rank` is about the batch of a `step`, `samples` have no rank")
        return self


class PlotConfig(Section):
    """Settings of `automodel plot`."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Run folders to draw, one curve each."""
    output: str | None = None
    """File to write, .png, .svg or .pdf; null: `curves.png` in the first run folder, with `tree` `curves_tree.png`."""
    log_x: bool = False
    """Use a logarithmic axis for steps."""
    log_loss: bool = False
    """Use a logarithmic axis for losses."""
    tree: bool = False
    """Draw the run with all its branches: validation losses above learning rates."""
    smooth: Count | None = None
    """Log records averaged for each point of the bold curve; null: a fortieth of the run; 1: no averaging."""
    title: str | None = None
    """Title of the figure; null: the run's name."""

    @model_validator(mode="after")
    def _of_a_tree(self) -> PlotConfig:
        given = [name for name in ("log_x", "log_loss", "smooth") if name in self.model_fields_set]
        if self.tree and given:
            raise ValueError(f"{given[0]} does not go with tree: leave one of them out")
        return self


class GenerateConfig(ModelInput):
    """Settings of `automodel generate`. (nanoGPT's sample.py has num_samples 10, max_new_tokens 500, seed 1337.)"""

    prompt: str = ""
    """Text to continue, or FILE:path for the text of a file; empty: the start of a new document."""
    prompt_file: str | None = None
    """File with one prompt per line (empty lines are skipped), continued as a batch;
    null: none."""
    max_new_tokens: Count = 100
    """Maximum number of tokens to add."""
    temperature: NotNegative = 0.8
    """0 always takes the most likely token; higher values give more variety."""
    top_k: Count | None = 200
    """Sample from this many of the most likely tokens; null: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the most likely tokens that hold this share of the probability; null: all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that have occurred before become less likely (as in CTRL and transformers)."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation and are not shown. The tokenizer's end-of-text token always ends one; empty: only
    that."""
    overflow: Literal["slide", "stop"] = "slide"
    """When the model's context is full: continue from its newest half (slide), or stop."""
    seed: Whole = DEFAULT_SEED
    """Seed for sampling."""
    num_samples: Count = 1
    """Number of continuations of each prompt."""


class ExportConfig(Section):
    """Settings of `automodel export hf`."""

    checkpoint: str
    """Checkpoint or run folder (its LATEST is used), written by any number of processes."""
    output: str
    """Folder to create; it must not exist yet."""
    ema: bool = False
    """Use the average of the weights that the checkpoint holds beside the last ones."""
    push_to_hub: HubName | None = None
    """Repository of the Hugging Face Hub to upload the folder to, ACCOUNT/NAME; it is made if it is not there; null: no
    upload. The token comes from HF_TOKEN or `hf auth login`."""
    private: bool = False
    """Make the repository private if it is new; one that is there and public is then refused."""
    revision: Branch | None = None
    """Branch to upload to, which is made if it is not there; null: main."""
    license: License | None = None
    """License to name in the model card, such as apache-2.0; null: none is named."""

    @model_validator(mode="after")
    def _uploads_if_it_says_how(self) -> ExportConfig:
        if self.push_to_hub is None and (self.private or self.revision is not None):
            raise ValueError("`private` and `revision` are about an upload: give `push_to_hub` too")
        return self


class ExportGGUFConfig(Section):
    """Settings of `automodel export gguf`."""

    checkpoint: str
    """Checkpoint, run folder (its LATEST is used) or Hugging Face folder."""
    output_file: str
    """File to create, such as model.gguf, and beside it model.Modelfile; they must not exist yet."""
    ema: bool = False
    """Use the average of the weights that the checkpoint holds beside the last ones."""
    type: Literal["f32", "f16", "q8_0"] = "f16"
    """Numbers of the matrices: fp32, fp16, or 8 bits with a scale for 32; norms and biases are fp32."""
    tokenizer: str | None = None
    """Tokenizer to put into the file: a name or folder; null: the model's own."""


class AverageConfig(Section):
    """Settings of `automodel average`."""

    checkpoints: tuple[str, ...] = Field(min_length=1)
    """Run folder, with `last` or `steps`; or checkpoints of one model (a run folder is then its LATEST)."""
    output: str
    """Run folder to create for the averaged checkpoint; it must not exist yet."""
    last: Count | None = None
    """Average the N newest checkpoints of the run; null: see `steps`."""
    steps: Counts = ()
    """Average these steps of the run; empty: see `last`, or name the checkpoints."""
    weights: Shares = ()
    """How much each checkpoint counts, in their order (of `last` the oldest first); empty: all the same."""

    @model_validator(mode="after")
    def _one_way_to_name_them(self) -> AverageConfig:
        if self.last is not None and self.steps:
            raise ValueError("found last and steps, expected one of them")
        if (self.last is not None or self.steps) and len(self.checkpoints) != 1:
            raise ValueError(f"last and steps choose from one run folder, found {len(self.checkpoints)} names")
        return self


class ImportConfig(Section):
    """Settings of `automodel import`: a checkpoint of another trainer, to be made a Hugging Face folder."""

    source: str
    """nanoGPT's `ckpt.pt`, or a folder of litgpt (`lit_model.pth`, `model_config.yaml`) or lingua (`consolidated.pth`,
    `params.json`)."""
    output: str
    """Folder to create; it must not exist yet."""
    tokenizer: str | None = None
    """Tokenizer to put beside the weights: a name or folder; null: the one in the folder, if there is one."""
    activation: Literal["gelu", "gelu_tanh"] | None = None
    """Activation in nanoGPT's model.py; null: gelu (erf), which it has had since June 2023."""
