"""`domain_mixture` of NeMo AutoModel 0.7.0, and validation sets named after sources: what each means here."""

import pytest
import yaml

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError

MODEL = {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", "vocab_size": 64, "n_positions": 8}
MEGATRON = "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining"
DATASET = {"_target_": MEGATRON, "paths": ["d/a", "d/b"], "seq_length": 8}
DOMAINS = [
    {"name": "web", "sampling_weight": 3, "objective_weight": 1, "path": "d/a"},
    {"name": "code", "sampling_weight": 1, "objective_weight": 1, "path": "d/b"},
]
MIXTURE = {
    "_target_": "Mixture",
    "seq_len": 8,
    "sources": {
        "web": {"file_pattern": "web/*.bin", "weight": 2, "objective_weight": 1, "raw_dtype": "uint16", "seed": 3},
        "books": {"paths": "books/x", "weight": 1, "objective_weight": 1, "split": "90,10,0"},
    },
}


def load(tmp_path, dataset=DATASET, **sections):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "dataset": dataset, **sections}))
    return load_config(PretrainConfig, path)


@pytest.mark.parametrize(
    ("paths", "blended"),
    [
        (["d/a", "d/b"], [3, "d/a", 1, "d/b"]),
        (["75", "d/a", "25", "d/b"], [3, "d/a", 1, "d/b"]),
        ({"train": ["d/a", "d/b"], "validation": ["v"]}, {"train": [3, "d/a", 1, "d/b"], "validation": ["v"]}),
    ],
)
def test_domains_become_weights_and_names_of_the_files(tmp_path, paths, blended):
    cfg = load(tmp_path, {**DATASET, "paths": paths}, domain_mixture={"domains": DOMAINS})
    found = cfg.domain_mixture.apply(cfg.dataset)
    assert found["paths"] == blended and found["seq_length"] == 8
    assert found["domains"] == [{"name": "web", "objective_weight": 1}, {"name": "code", "objective_weight": 1}]
    again = load_config(PretrainConfig, _written(tmp_path, to_yaml(cfg)))
    assert again.domain_mixture == cfg.domain_mixture and again.dataset == cfg.dataset


def _written(folder, text):
    (folder / "again.yaml").write_text(text)
    return folder / "again.yaml"


def changed(number, **values):
    return [{**domain, **(values if at == number else {})} for at, domain in enumerate(DOMAINS)]


@pytest.mark.parametrize(
    ("domains", "dataset", "says"),
    [
        (DOMAINS[:1], {}, "expected two or more domains, found 1"),
        (changed(1, name="web"), {}, "two domains have one name"),
        (changed(1, name="weighted"), {}, "'weighted' is the name of the mean"),
        (changed(1, sampling_weight=0), {}, "sampling_weight"),
        (changed(1, objective_weight=-1), {}, "objective_weight"),
        ([{**domain, "objective_weight": 0} for domain in DOMAINS], {}, "all objective weights are 0"),
        (changed(1, path="d/c"), {}, r"paths of domain_mixture \(d/a, d/c\)"),
        (DOMAINS[::-1], {}, "in their order"),
        (DOMAINS, {"paths": "d/*"}, "in their order"),
        (DOMAINS, {"paths": ["50", "d/a", "50", "d/b"]}, "other weights than domain_mixture"),
        (DOMAINS, {"paths": [0, "d/a", 0, "d/b"]}, "other weights than domain_mixture"),
        (DOMAINS, MIXTURE, "a weight and an objective_weight"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, domains, dataset, says):
    dataset = dataset if "_target_" in dataset else {**DATASET, **dataset}
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, dataset, domain_mixture={"domains": domains})


def test_held_out_files_by_source_are_read_as_the_source_is(tmp_path):
    cfg = load(tmp_path, MIXTURE, validation_sources={"web": "web/val.bin", "books": "books/x"})
    web, books = cfg.validation_datasets["web"], cfg.validation_datasets["books"]
    assert web.to_mapping() == {
        "_target_": "NanogptDataset", "file_pattern": "web/val.bin", "seq_len": 8, "raw_dtype": "uint16",
    }  # fmt: skip
    assert books.to_mapping() == {
        "_target_": "MegatronPretraining", "paths": "books/x", "seq_length": 8, "split": "90,10,0", "order": "file",
        "splits_to_build": "validation",
    }  # fmt: skip
    rearranged = {name: {**source, "fim": {"rate": 0.5}} for name, source in MIXTURE["sources"].items()}
    plain = load(tmp_path, {**MIXTURE, "sources": rearranged}, validation_sources=cfg.validation_sources)
    assert plain.validation_datasets == cfg.validation_datasets  # training's alone: Megatron's set does not take it
    other = load(tmp_path, MIXTURE, validation_sources={"books": ["v/x", "v/y"]}).validation_datasets["books"]
    assert other.arguments["paths"] == {"validation": ["v/x", "v/y"]}
    assert load_config(PretrainConfig, _written(tmp_path, to_yaml(cfg))).validation_datasets == cfg.validation_datasets


@pytest.mark.parametrize(
    ("dataset", "sections", "says"),
    [
        (MIXTURE, {"validation_sources": {"wib": "x"}}, "dataset.sources has no wib; they are books, web"),
        (DATASET, {"validation_sources": {"web": "x"}}, "dataset.sources has no web"),
        (
            MIXTURE,
            {"validation_sources": {"web": "x"}, "validation_dataset_web": DATASET},
            "validation_sources.web and validation_dataset_web are one",
        ),
        (
            {**MIXTURE, "sources": {"default": MIXTURE["sources"]["web"]}},
            {"validation_sources": {"default": "x"}, "validation_dataset": DATASET},
            "validation_dataset is called default, and so is another",
        ),
        (
            DATASET,
            {"validation_dataset": DATASET, "validation_dataset_default": DATASET},
            "validation_dataset is called default, and so is another",
        ),
    ],
)
def test_sources_that_are_not_there_or_twice_are_refused(tmp_path, dataset, sections, says):
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, dataset, **sections)
