import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.cli.argv import LAUNCH_FLAGS, parse_argv
from automodel_cli.errors import ConfigError

WANTED = ("pretrain", "llm", "-c", "cfg.yaml", "--model.n_layer", "4")


@pytest.mark.parametrize(
    "argv",
    [
        "pretrain llm -c cfg.yaml --model.n_layer 4 --nproc-per-node 8",
        "pretrain llm -c cfg.yaml --model.n_layer 4 --nproc-per-node=8",
        "--nproc-per-node 8 pretrain llm -c cfg.yaml --model.n_layer 4",
        "--nproc_per_node 8 /usr/local/bin/automodel pretrain llm -c cfg.yaml --model.n_layer 4",
        "--nproc-per-node 8 automodel pretrain llm -c cfg.yaml --model.n_layer 4",
        "pretrain --nproc-per-node 8 llm -c cfg.yaml --model.n_layer 4",
        "pretrain llm -c --nproc-per-node 8 cfg.yaml --model.n_layer 4",
        "llm pretrain -c cfg.yaml --nproc-per-node 8 --model.n_layer 4",
        "--debug pretrain llm -c cfg.yaml --model.n_layer 4 --nproc-per-node 8",
    ],
)
def test_forms_that_mean_the_same(argv):
    found = parse_argv(argv.split())
    assert found.arguments == WANTED
    assert found.launch == {"nproc-per-node": "8"}
    assert found.debug == ("--debug" in argv)
    assert found.wants_processes


@pytest.mark.parametrize(
    ("argv", "arguments"),
    [
        ("cfg.yaml", ("pretrain", "llm", "--config", "cfg.yaml")),
        ("path/to/CFG.YML a.b=1", ("pretrain", "llm", "--config", "path/to/CFG.YML", "a.b=1")),
        ("-c cfg.yaml --a.b 1", ("pretrain", "llm", "-c", "cfg.yaml", "--a.b", "1")),
        ("--config=cfg.yaml", ("pretrain", "llm", "--config=cfg.yaml")),
        ("eval run --data x.bin", ("eval", "run", "--data", "x.bin")),
        ("preprocess nanogpt -m 500M", ("preprocess", "nanogpt", "-m", "500M")),
        ("--help", ("--help",)),
        ("", ()),
    ],
)
def test_the_command_that_is_meant(argv, arguments):
    assert parse_argv(argv.split()).arguments == arguments


def test_all_of_torchruns_flags():
    argv = (
        "pretrain llm -c c.yaml --nnodes 2 --node-rank 1 --rdzv-backend c10d --rdzv-endpoint host:29400 --rdzv_id 7 "
        "--master-addr h --master_port 29500 --max-restarts 3 --standalone"
    )
    found = parse_argv(argv.split())
    assert found.arguments == ("pretrain", "llm", "-c", "c.yaml")
    assert found.launch == {
        "nnodes": "2", "node-rank": "1", "rdzv-backend": "c10d", "rdzv-endpoint": "host:29400", "rdzv-id": "7",
        "master-addr": "h", "master-port": "29500", "max-restarts": "3", "standalone": "true",
    }  # fmt: skip
    assert found.wants_processes


def test_one_process_needs_no_launcher():
    assert not parse_argv(["cfg.yaml"]).wants_processes
    assert not parse_argv(["cfg.yaml", "--nproc-per-node", "1", "--nnodes=1"]).wants_processes
    assert parse_argv(["cfg.yaml", "--nproc-per-node", "gpu"]).wants_processes
    assert parse_argv(["cfg.yaml", "--nnodes", "1:4"]).wants_processes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("pretrain --nproc-per-node", "needs a value"),
        ("a.yaml -c b.yaml", "two configuration files are given, a.yaml and b.yaml"),
        ("plot run -c a.yaml --config=b.yaml", "two configuration files are given, a.yaml and b.yaml"),
        ("pretrain --nproc-per-node --fresh", "needs a value"),
        ("pretrain --nproc-per-node=", "needs a value"),
        ("pretrain --nproc-per-node eight", "expected a whole number"),
        ("pretrain --nproc-per-node 0", "at least 1"),
        ("pretrain --max-restarts -1", "expected a whole number"),
        ("pretrain --nproc-per-nod 8", "unknown option"),
    ],
)
def test_bad_launch_flags(argv, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_argv(argv.split())
    assert caught.value.exit_code == 2


def test_other_options_are_not_taken_for_launch_flags():
    argv = [
        "preprocess",
        "nanogpt",
        "--max-tokens",
        "5",
        "--num-workers",
        "2",
        "--val-tokens",
        "1",
        "--shard-tokens=9",
    ]
    assert parse_argv(argv).arguments == tuple(argv)


def test_after_two_dashes_nothing_is_taken():
    found = parse_argv(["pretrain", "llm", "--", "--nproc-per-node", "8", "--debug"])
    assert found.arguments == ("pretrain", "llm", "--", "--nproc-per-node", "8", "--debug")
    assert found.launch == {}


TOKENS = st.sampled_from(
    [
        "pretrain",
        "llm",
        "-c",
        "x.yaml",
        "a.b=1",
        "--a.b",
        "-3",
        "[1, 2]",
        "--flag",
        "--fresh",
        "eval",
        "ü",
        "--a.b=c d",
    ]
)


@examples(100)
@given(
    st.lists(TOKENS, max_size=8),
    st.lists(st.sampled_from(sorted(LAUNCH_FLAGS)), max_size=3, unique=True),
    st.data(),
)
def test_no_token_is_lost_wherever_launch_flags_stand(tokens, flags, data):
    """With the launch flags out, what is left is what parsing the command line without them gives."""
    assume(tokens.count("-c") + (tokens[:1] == ["x.yaml"]) < 2)  # two files are refused
    argv = list(tokens)
    for flag in flags:
        place = data.draw(st.integers(0, len(argv)))
        argv.insert(place, f"--{flag}=7")
    found = parse_argv(argv)
    assert found.launch == dict.fromkeys(flags, "7")
    assert found.arguments == parse_argv(tokens).arguments
    assert [token for token in tokens if token not in found.arguments] == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel pretrain llm -c cfg.yaml",
        "/opt/bin/AutoModel pretrain llm -c cfg.yaml",
        "--nproc-per-node 8 /opt/bin/AutoModel pretrain llm -c cfg.yaml",
        "llm pretrain -c cfg.yaml",
    ],
)
def test_the_guides_spellings(line):
    assert parse_argv(line.split()).arguments == ("pretrain", "llm", "-c", "cfg.yaml")


@pytest.mark.parametrize("line", ["train.py --batch_size=32", "config/train_gpt2.py"])
def test_a_script_of_nanogpt_is_no_command(line):
    with pytest.raises(ConfigError, match=r"is a Python file(.|\n)*automodel init"):
        parse_argv(line.split())
