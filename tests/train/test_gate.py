"""What a pre-training has to beat."""

import pytest
import torch

import mim_bench
from mim_bench.experiment.run import execute


@pytest.mark.parametrize("target", ["pixel", "norm_pixel", "hog", "dvae"])
def test_gate__is_in_the_record_for_every_kind_of_target(small, tmp_path, target):
    more = ["dvae.vocab_size=4", "dvae.width=8", "dvae.fit_epochs=2"] if target == "dvae" else []
    config = small(target, "evaluate.protocols=knn", *more)
    (record,) = execute(config, out=tmp_path).records
    gate = record.pretrain.gate
    assert {"model_loss", "mean_loss", "ridge_loss", "flat_share"} <= set(gate)
    assert ("copy_loss" in gate) == (target != "dvae")
    assert gate["model_r2"] == pytest.approx(1 - gate["model_loss"] / gate["mean_loss"])
    assert all(torch.isfinite(torch.tensor(list(gate.values()))))


def test_gate__of_too_few_images_has_no_losses_and_the_run_goes_on(tmp_path):
    config = mim_bench.load_config(
        "hog", "tiny", ["data.limit_images=5", "pretrain.epochs=1", "evaluate.protocols=knn"]
    )
    records = execute(config, out=tmp_path).records
    assert {record.protocol for record in records} == {"knn"}
    assert all(record.pretrain.gate == {} for record in records)


def found_on(images, small, monkeypatch, *, limit=2000, has_model=False):
    """The gate's losses of `pixel` on made-up views: index -> (B, 1, 32, 32) uint8."""
    from mim_bench.data.run_data import complete, open_data
    from mim_bench.targets.build import make_target
    from mim_bench.train import gate, pretrain

    cpu = torch.device("cpu")
    config = small("pixel", "augment.crop=none", f"data.limit_images={limit}")
    data = open_data(config, cpu)
    config = complete(config, data)

    def views(config, data, batches, epoch, device, num_workers):
        yield from ((images(index), index) for index in batches)

    monkeypatch.setattr(pretrain, "views", views)
    target = make_target(config)
    model = pretrain.build_model(config, target.dim) if has_model else None
    return gate.gate_losses(config, data, target, model, cpu)


def test_ridge__finds_a_linear_rule_and_the_mean_does_not(small, monkeypatch):
    """Images of one colour each: every hidden patch is a linear function of the visible ones."""

    def flat(index):
        levels = (index * 37 % 256).to(torch.uint8)
        return levels[:, None, None, None].expand(-1, 1, 32, 32)

    found = found_on(flat, small, monkeypatch, limit=600, has_model=True)
    assert found["copy_loss"] == 0 and found["flat_share"] == 1
    assert found["ridge_loss"] < 0.05 * found["mean_loss"]
    assert found["model_loss"] > found["ridge_loss"]  # untrained: below the gate


def test_ridge__does_not_see_the_hidden_pixels(small, monkeypatch):
    """Of noise nothing can be predicted, but from itself."""

    def noise(index):
        parts = [torch.randint(256, (1, 32, 32), generator=torch.Generator().manual_seed(int(i)))
                 for i in index]  # fmt: skip
        return torch.stack(parts).to(torch.uint8)

    found = found_on(noise, small, monkeypatch)
    assert 0.95 * found["mean_loss"] < found["ridge_loss"] < 1.02 * found["mean_loss"]
    assert found["ridge_r2"] == pytest.approx(1 - found["ridge_loss"] / found["mean_loss"])


def test_ridge__of_a_wide_target_is_solved_by_places(small, monkeypatch):
    """As at once, where views and penalties are the same."""
    from mim_bench.train import gate

    def waves(index):
        x = torch.arange(32) / 5 + index[:, None, None, None]
        return (127 + 120 * torch.sin(x).expand(-1, 1, 32, 32)).to(torch.uint8)

    monkeypatch.setattr(gate, "_PENALTIES", (1e-2,))
    whole = found_on(waves, small, monkeypatch)["ridge_loss"]
    monkeypatch.setattr(gate, "_FIT_VIEWS", 2 * gate._FIT_VIEWS)
    monkeypatch.setattr(gate, "_MAX_OUTPUTS", 5 * 64)  # of 16 x 64
    assert found_on(waves, small, monkeypatch)["ridge_loss"] == pytest.approx(whole, rel=1e-3)


def test_ridge__knows_the_mask(small, monkeypatch):
    """Grey images whose only information is which patches are hidden, the target itself."""
    from mim_bench.train import gate

    seen: list[int] = []
    parts = gate._parts

    def spied(*given):
        for inputs, *rest in parts(*given):
            seen.append(inputs.shape[1])
            yield inputs, *rest

    monkeypatch.setattr(gate, "_parts", spied)
    found_on(
        lambda index: torch.full((len(index), 1, 32, 32), 99, dtype=torch.uint8), small, monkeypatch
    )
    assert set(seen) == {64 * 16 + 16}  # pixels and one number a patch


def test_nearest_visible__is_at_the_least_distance():
    from mim_bench.target import Geometry
    from mim_bench.train.gate import _nearest_visible, _Views

    empty = torch.empty(0)
    visible, hidden = torch.tensor([[0, 15]]), torch.tensor([[1, 4, 14, 11]])
    views = _Views(empty, empty, hidden, visible, empty, empty)
    geometry = Geometry((16, 16), 4, 1, (0.5,), (0.5,))
    assert _nearest_visible(views, geometry).tolist() == [[0, 0, 15, 15]]


def test_gate__is_computed_on_views_that_training_does_not_see(small, tmp_path, monkeypatch):
    from mim_bench.train import gate, pretrain

    seen = []
    views = pretrain.views

    def spy(config, data, batches, epoch, *rest):
        seen.append(epoch)
        return views(config, data, batches, epoch, *rest)

    monkeypatch.setattr(gate.pretrain, "views", spy)
    config = small("pixel", "evaluate.protocols=knn")
    mim_bench.run(config, out=tmp_path)
    trained, gated = set(range(config.pretrain.epochs)), {config.pretrain.epochs}
    assert set(seen) == trained | gated
