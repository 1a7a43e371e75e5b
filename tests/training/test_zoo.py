"""Every network of the registry: shape, gradients, penalties, export; and the growth out of a relative."""

import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import timm
import torch
from torch import nn

from app.core.parts import Preprocessing
from tests.training.conftest import some_novelty
from training.graph import Served, round_to_half, write_onnx
from training.module import looking_device
from training.parity import check_parity
from training.zoo import Classifier, create, least_px, names
from training.zoo.activations import Relu6ToSilu, set_activation_progress
from training.zoo.attention import OneTokenAttention, SpatialHead
from training.zoo.classifier import parameter_count
from training.zoo.dense import DensePenaltyHead
from training.zoo.efficientnet import stage_features
from training.zoo.grow import ChannelMap, grow_efficientnet
from training.zoo.heads import pull_back
from training.zoo.staged import StagedClassifier

# Of which standard normal noise is nowhere black.
SCALING = ((127.0,) * 3, (16.0,) * 3)

Net = TypeVar("Net", bound=nn.Module)


def side(name: str) -> int:
    return max(64, least_px(name) + 32)


@pytest.fixture(scope="module", params=names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> Classifier:
    """A network with lively statistics, in evaluation mode; not to be changed."""
    torch.manual_seed(0)
    return liven(create(name, side(name), scaling=SCALING)).eval()


def liven(network: Net) -> Net:
    """Give batch norms other statistics than 0 and 1, so that a forgotten one is noticed."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network


def test_forward_gives_two_logits(name: str, network: Classifier) -> None:
    with torch.no_grad():
        assert network(torch.randn(3, 3, side(name), side(name))).shape == (3, 2)


def test_gradient_reaches_every_trainable_weight(name: str) -> None:
    torch.manual_seed(0)
    # timm starts the last norm of a residual branch at zero: what stands before it would have to wait.
    network: Any = liven(create(name, side(name), scaling=SCALING)).train()
    logits, penalty = network.forward_with_penalty(torch.randn(4, 3, side(name), side(name)))
    (logits.square().sum() + penalty).backward()
    idle = {key for key, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert idle == {f"head.{key}" for key in network.head.idle}


def test_the_penalty_does_not_change_the_logits(name: str, network: Classifier) -> None:
    images = torch.randn(2, 3, side(name), side(name))
    with torch.no_grad():
        torch.testing.assert_close(network.forward_with_penalty(images)[0], network(images))


def test_the_evidence_is_grad_cam_of_the_margin(name: str, network: Classifier) -> None:
    if isinstance(network, StagedClassifier):
        pytest.skip("its evidence is gradient times activation: tests/training/test_probe.py")
    head: Any = copy.deepcopy(network.head).double()
    with torch.no_grad():
        features = network.feature_map(torch.randn(3, 3, side(name), side(name))).double()
    logits, penultimate, evidence = head.explain(features)
    torch.testing.assert_close(logits, head(features))
    torch.testing.assert_close(head.logits(penultimate), logits)
    refined = head.refine(features).detach().requires_grad_()
    judged, _ = head.classify(head.pool(refined))
    (gradient,) = torch.autograd.grad((judged[:, 0] - judged[:, 1]).sum(), refined)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * refined).sum(dim=1)
    torch.testing.assert_close(evidence, expected)
    assert evidence.abs().max() > 0


def test_the_exported_graph_computes_what_the_network_does(name: str, network: Classifier, tmp_path: Path) -> None:
    spec = Preprocessing(crop_px=None, size_px=side(name), resample="nearest", mean=(127.0,) * 3, std=(128.0,) * 3)
    rounded = round_to_half(copy.deepcopy(network))
    served = Served(rounded, spec, some_novelty(rounded, spec.size_px)).eval()
    write_onnx(served, spec, tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, size=(3, spec.size_px, spec.size_px, 3), dtype=np.uint8)
    parity = check_parity(served, tmp_path / "model.onnx", images, spec)
    assert parity.cells == 3
    halves = sum(weight.numel() for weight in network.parameters()) * 2
    halves += served.novelty.whitening.numel() * 2
    assert (tmp_path / "model.onnx").stat().st_size < 1.1 * halves + 1_000_000


def test_a_network_that_starts_with_the_weights_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 75 px"):
        create("inception-v3", 40)
    with pytest.raises(ValueError, match="no network 'resnet-9000'"):
        create("resnet50", 64, backbone="resnet-9000")
    with pytest.raises(ValueError, match="stochastic depth"):
        create("vgg19", 64, drop_path=0.1)


def test_one_token_attention_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer = OneTokenAttention(12, dropout=0.0)
    vectors = torch.randn(5, 12)
    torch.testing.assert_close(layer.train()(vectors), layer.eval()(vectors))
    assert sum(weight.numel() for weight in OneTokenAttention(1280, 0.3).parameters()) == (
        3 * (1280 * 5120 + 5120) + 5120 * 1280 + 1280
    )


def test_spatial_attention_knows_where_a_feature_is() -> None:
    torch.manual_seed(0)
    head = SpatialHead(8, side=3).eval()
    with torch.no_grad():
        head.position.normal_()
        features = torch.randn(1, 8, 3, 3)
        assert not torch.allclose(head(features), head(features.flip(3)), atol=1e-4)


def test_a_layer_without_a_written_out_gradient_is_refused() -> None:
    with pytest.raises(TypeError, match="Sigmoid"):
        pull_back(nn.Sigmoid(), torch.zeros(1, 2), torch.zeros(1, 2))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="efficientnet-b3"):
        create("resnet-9000", 64)


def test_b3_has_the_notebooks_number_of_parameters() -> None:
    keras_normalisation_layer = 7
    assert parameter_count(create("efficientnet-b3", 224)) + keras_normalisation_layer == 11_183_665


def test_the_penalty_is_kerass() -> None:
    head = DensePenaltyHead(channels=3, hidden=2).eval()
    with torch.no_grad():
        head.dense.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, -2.0, 0.0]]))
        head.dense.bias.copy_(torch.tensor([0.5, -0.25]))
    features = torch.zeros(2, 3, 1, 1)
    features[0, :, 0, 0] = torch.tensor([3.0, 1.0, 0.0])
    features[1, :, 0, 0] = torch.tensor([1.0, -1.0, 0.0])
    shrink = (1 + 1e-3) ** -0.5  # batch norm with mean 0 and variance 1
    activity = (3 * shrink + 0.5) + (1 * shrink + 0.5) + (2 * shrink - 0.25)
    expected = 0.016 * (1 + 4) + 0.006 * (0.5 + 0.25) + 0.006 * activity / 2
    assert head.forward_with_penalty(features)[1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 6.0), (0.5, 7.0), (1.0, 8.0)])
def test_the_activation_goes_from_relu6_to_silu(progress: float, expected: float) -> None:
    activation = Relu6ToSilu()
    set_activation_progress(activation, progress)
    assert float(activation(torch.tensor(8.0))) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("progress", [-0.1, 1.1])
def test_progress_outside_its_range_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        set_activation_progress(Relu6ToSilu(), progress)


def relative(name: str) -> nn.Module:
    """A small network with random weights and lively batch-norm statistics."""
    torch.manual_seed(1)
    network: nn.Module = liven(timm.create_model(name, num_classes=0, global_pool=""))
    return network.eval()


def test_the_grown_network_computes_what_its_relative_does() -> None:
    small, network = relative("tf_efficientnet_lite2").double(), create("efficientnet-b3", 224).double().eval()
    large: Any = network.backbone
    grow_efficientnet(small, large, seed=0)
    set_activation_progress(network, 0.0)
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        wanted, actual = small(images), large(images)
    torch.testing.assert_close(actual[:, : wanted.shape[1]], wanted, rtol=0, atol=1e-9)
    assert wanted.std() > 0.01


def test_growth_can_be_repeated_and_depends_on_the_seed() -> None:
    small = relative("tf_efficientnet_lite2")

    def grown(seed: int) -> torch.Tensor:
        torch.manual_seed(5)
        network: Any = create("efficientnet-b3", 224)
        grow_efficientnet(small, network.backbone, seed)
        weight: torch.Tensor = network.backbone.conv_head.weight
        return weight

    assert torch.equal(grown(0), grown(0))
    assert not torch.equal(grown(0), grown(1))


def test_copies_share_the_whole_of_a_channel() -> None:
    channels = ChannelMap.draw(5, 13, torch.Generator().manual_seed(0))
    total = torch.zeros(5, dtype=torch.float64).index_add_(0, channels.source, channels.share)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert channels.source[:5].tolist() == [0, 1, 2, 3, 4]


def test_a_network_can_not_be_grown_smaller() -> None:
    small: Any = timm.create_model("tf_efficientnet_b3", num_classes=0, global_pool="")
    with pytest.raises(ValueError, match="can't be grown"):
        grow_efficientnet(small, relative("tf_efficientnet_lite2"), seed=0)


def test_stage_features_end_in_the_backbones_own_output() -> None:
    backbone: Any = create("efficientnet-b3", 224).eval().backbone
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = stage_features(backbone, images)
        torch.testing.assert_close(features[-1], backbone(images))
    assert len(features) == 8


def test_figures_are_those_of_float32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    looking_device()
    assert not torch.backends.cudnn.allow_tf32
