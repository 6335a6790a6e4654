"""What a configuration makes of the loss."""

from types import SimpleNamespace

import pytest

from automodel_cli.assembly.training import build_head_loss
from automodel_cli.config.targets.roles import ROLES
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import AutomodelError
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy


def built(section, kind):
    loss_fn = None if section is None else Target.parse(section, default_name=ROLES["loss_fn"].default_target)
    return build_head_loss(SimpleNamespace(loss_fn=loss_fn), SimpleNamespace(head_loss=kind, compile=False))


@pytest.mark.parametrize(("kind", "expected"), [("plain", MaskedCrossEntropy), ("chunked", ChunkedCrossEntropy)])
def test_a_z_loss_goes_with_whichever_loss_is_chosen(kind, expected):
    named = {"_target_": "automodel_cli.train.losses.MaskedCrossEntropy", "z_loss_weight": 1e-4}
    for section, weight in [(None, 0.0), ({"z_loss_weight": 1e-4}, 1e-4), (named, 1e-4)]:
        loss = built(section, kind)
        assert type(loss) is expected
        assert loss.z_loss_weight == weight


@pytest.mark.parametrize("section", [None, {"_target_": "automodel_cli.train.losses.ChunkedCrossEntropy"}])
def test_a_loss_caps_logits_where_the_run_has_not_begun_without(section):
    assert built(section, "chunked_capped").takes_softcap
    assert not built(section, "chunked").takes_softcap


@pytest.mark.parametrize("name", ["torch.nn.CrossEntropyLoss", "automodel_cli.train.packaged_losses.CutCrossEntropy"])
def test_losses_of_others_refuse_a_z_loss(name):
    with pytest.raises(AutomodelError, match="z_loss_weight"):
        built({"_target_": name, "z_loss_weight": 1e-4}, "plain")
