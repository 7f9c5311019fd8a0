"""Acceleration changes speed and nothing else: parity holds, names stay, gradients agree."""

import copy

import pytest
import torch
from official import GEOMETRY, official_model, target

from mim_bench.config.run import RuntimeConfig
from mim_bench.train.backend import accelerate, precision

CPU = torch.device("cpu")


def test_accelerated_model__still_equals_official(golden):
    mae = {k: torch.from_numpy(v) for k, v in golden("mae").items() if v.dtype.kind != "U"}
    images = mae["images_u8"].permute(0, 3, 1, 2).float() / 255
    model = official_model()
    accelerate(model, CPU, RuntimeConfig())
    loss, prediction, _ = model(images, target("norm_pixel"), mae["noise"])
    torch.testing.assert_close(prediction, mae["pred"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, mae["loss_norm_pix_true"].float(), atol=1e-6, rtol=0)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            want = mae[f"grad_norm_pix_true/{name.removeprefix('encoder.')}"].double()
            torch.testing.assert_close(parameter.grad.norm().double(), want, rtol=1e-5, atol=1e-9)


def test_accelerated_model__keeps_its_names_and_weights():
    model = official_model()
    before = copy.deepcopy(model.state_dict())
    accelerate(model, CPU, RuntimeConfig())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (8, 3), (5, 5)])
@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_linear_layer__has_the_same_values_and_gradients(inputs, outputs, shape):
    plain = torch.nn.Linear(inputs, outputs)
    fast = copy.deepcopy(plain)
    accelerate(fast, CPU, RuntimeConfig())
    results = []
    for layer in (plain, fast):
        x = (
            torch.linspace(-1, 1, torch.Size(shape).numel() * inputs)
            .view(*shape, inputs)
            .requires_grad_()
        )
        y = layer(x)
        y.square().sum().backward()
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_compiled_model__predicts_the_same():
    """The whole of `predict` traces into one graph; the eager backend makes that quick to check."""
    model = official_model()
    graph = torch.compile(model.predict, backend="eager", fullgraph=True)
    from mim_bench.model import masking

    shuffle, _ = masking.split(torch.rand(2, GEOMETRY.num_patches), 16)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(graph(images, shuffle), model.predict(images, shuffle))


@pytest.mark.parametrize("is_fast", [True, False])
def test_precision__follows_the_processor_unless_it_is_stated(monkeypatch, is_fast):
    """Whole runs at three seeds differed by less than the chance of the test images."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast, raising=False)
    assert precision(CPU, RuntimeConfig()) == ("bfloat16" if is_fast else "float32")
    assert precision(CPU, RuntimeConfig(precision="float32")) == "float32"
    assert precision(torch.device("cuda"), RuntimeConfig()) == "bfloat16"
    assert precision(torch.device("mps"), RuntimeConfig()) == "float32"


@pytest.mark.parametrize("stated", ["float32", "bfloat16"])
def test_attention__is_fused_on_a_cpu_in_float32_alone(stated):
    """torch's fused attention in bfloat16 is 5 to 10 times slower there than plain matrix products."""
    model = official_model()
    accelerate(model, CPU, RuntimeConfig(precision=stated))
    fused = {m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")}
    assert fused == {stated == "float32"}
