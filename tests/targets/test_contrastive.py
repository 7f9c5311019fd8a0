"""The contrastive reference: its loss against numpy, its views, its teacher, its cost, and a run of it."""

import copy

import numpy as np
import torch

from mim_bench.config.run import ModelConfig
from mim_bench.data.run_data import complete, open_data
from mim_bench.evaluate import flops
from mim_bench.experiment.run import execute
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.records.run_folder import read_json
from mim_bench.targets.build import build_target
from mim_bench.train.pretrain import views

CPU = torch.device("cpu")
STUDENT = ModelConfig(
    patch_size=4, embed_dim=16, depth=2, num_heads=2, decoder_depth=1, decoder_dim=16,
    decoder_num_heads=2,
)  # fmt: skip
VIEWS = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pair():
    target = build_target("contrastive", image_size=16, patch_size=4, model=STUDENT, width=8)
    model = MaskedAutoencoder(STUDENT, target.geometry, target.dim)
    target.begin(model)
    return target, model


def embedded(model, images):
    """(B, D) of the class token of the whole image, of length 1."""
    with torch.no_grad():
        order = torch.arange(16).expand(len(images), -1)
        found = model.predict(images, order, class_token=True)[:, 0].numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def info_nce(queries, keys):
    scores = queries @ keys.T / 0.2
    return -(np.diag(scores) - np.log(np.exp(scores).sum(1))).mean()


def test_loss__is_info_nce_of_each_view_with_the_other():
    target, model = pair()
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():  # the student has moved, its teacher not
            parameter.add_(0.1 * torch.randn_like(parameter))
    (q1, q2), (k1, k2) = ([embedded(m, view) for view in VIEWS] for m in (model, teacher))
    loss = model.compare(list(VIEWS), target)
    np.testing.assert_allclose(loss.item(), (info_nce(q1, k2) + info_nce(q2, k1)) / 2, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in target.parameters())


def test_teacher__is_the_moving_average_of_the_student():
    target, model = pair()
    before = {name: value.clone() for name, value in target.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    target.after_step(model, 5, 10)
    for name, value in target.teacher.state_dict().items():
        wanted = 0.995 * before[name] + 0.005 * model.state_dict()[name]
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_views__have_streams_of_their_own_and_the_first_is_everybodys(small):
    config = small("contrastive")
    data = open_data(config, CPU)
    config = complete(config, data)

    def view(order, *number):
        return next(views(config, data, [torch.tensor(order)], 0, CPU, 0, *number))[0]

    order = [3, 1, 4]
    assert torch.equal(view(order), view(order, 0))
    first, second = view(order), view(order, 1)
    assert not torch.equal(first, second)
    assert torch.equal(view(order[::-1], 1).flip(0), second)  # by sample, not by batch
    assert not torch.equal(view(order, 2), second)


def test_run__is_whole_and_counts_both_views_unmasked(small, tmp_path):
    config = small("contrastive", "evaluate.protocols=knn")
    result = execute(config, out=tmp_path)
    assert {"picture.png", "target.safetensors"} <= {path.name for path in result.folder.iterdir()}
    facts = read_json(result.folder / "pretrain.json")
    assert facts["gate"] == {} and facts["final_loss"] < np.log(30) + 0.5
    masked = execute(small("ema_token", "evaluate.protocols=[]"), out=tmp_path)
    seen = facts["images_seen"]
    assert facts["flops"] / seen > 2 * read_json(masked.folder / "pretrain.json")["flops"] / seen
    own = flops.target(complete(config, open_data(config, CPU)))
    assert own.num_views == 2 and own.saved_bytes > 0
