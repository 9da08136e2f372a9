"""The main job on a model that this project did not make: I-BAU's published BadNets checkpoint (CIFAR-10)."""

import copy
import io

import numpy as np
import pytest
import torch
from conftest import SHARED, same
from PIL import Image

from gradprune.attacks import BadNets
from gradprune.datasets import ImageSet
from gradprune.defenses import grad_prune
from gradprune.evaluation import evaluate
from gradprune.models import SmallVGG

PEER, CIFAR = SHARED / "peers/ibau/badnets_8_02_ckpt.pth", SHARED / "data/cifar10_all_jpeg90.npz"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (PEER.exists() and CIFAR.exists()), reason="the third-party checkpoint and CIFAR-10 lie beside the repository only in development")]
TARGET = 8


@pytest.fixture(scope="module")
def cifar_test():
    packed = np.load(CIFAR, allow_pickle=False)
    header, data, offsets = packed["header"].tobytes(), packed["data"].tobytes(), packed["offsets"][50_000:52_001]
    images = np.stack([np.asarray(Image.open(io.BytesIO(header + data[a:b])))
                       for a, b in zip(offsets[:-1], offsets[1:], strict=True)])
    labels = torch.from_numpy(packed["y_test"][:2000].astype(np.int64))
    return ImageSet(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, tuple(map(str, packed["classes"])))


@pytest.fixture(scope="module")
def peer():
    model = SmallVGG(10)
    model.load_state_dict(torch.load(PEER, weights_only=True, map_location="cpu")["net"])
    return model.eval()


def test_a_real_model_is_reproduced_and_defended(peer, cifar_test, record_property):
    trigger = BadNets(size=4, color="white", margin=1)
    pool, test = cifar_test.subset(torch.arange(1000)), cifar_test.subset(torch.arange(1000, 2000))
    before = evaluate(peer, test, trigger, TARGET)
    assert before == pytest.approx((0.827, 0.982, 0.016), abs=0.02)

    given = copy.deepcopy(peer.state_dict())
    result = grad_prune(peer, pool, trigger, spc=2, recipe="paper", progress=False)
    assert same(given, peer)
    for layer, index in result.mask.removed:
        assert (result.pruned.get_submodule(layer).weight[index] == 0).all()
        assert (result.model.get_submodule(layer).weight[index] == 0).all()
    rows = result.rows("prune")
    assert rows[0]["val_acc"] - rows[len(result.mask.positions)]["val_acc"] < 0.10, "pruning lost alpha or more"
    pruned, tuned = (evaluate(model, test, trigger, TARGET) for model in (result.pruned, result.model))
    for stage, metrics in (("before", before), ("pruned", pruned), ("tuned", tuned)):
        record_property("summary", f"third-party badnets, spc 2, {stage:>6}: {metrics}")
