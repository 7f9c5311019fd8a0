"""Rules 1 and 2: two rows of a closed table differ in the target block only; images and masks are shared."""

import hashlib
import itertools
import json

import pytest
import torch

from mim_bench.config import recipe
from mim_bench.config.resolve import load_config
from mim_bench.data.run_data import complete, open_data
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.records import run_folder
from mim_bench.targets.build import make_target
from mim_bench.train.fit import fitted_target
from mim_bench.train.pretrain import build_model, first_batches_hash, pretrain

TARGETS = recipe.names("targets")
PRESETS = recipe.names("preset")
CPU = torch.device("cpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_configs_of_any_two_targets__differ_in_the_target_block_only(preset):
    configs = {name: load_config(name, preset) for name in TARGETS}
    for a, b in itertools.combinations(TARGETS, 2):
        fields = run_folder.difference(configs[a], configs[b])
        assert fields, f"{a} and {b} are the same target"
        assert [field for field in fields if not field.startswith("target.")] == []
        rest = ("preset", "evaluate", "knn", "linear", "finetune", "runtime")
        assert all(getattr(configs[a], part) == getattr(configs[b], part) for part in rest)


def test_completed_configs_and_first_batches__are_equal_for_every_target(small):
    seen = {}
    for name in TARGETS:
        config = small(name)
        data = open_data(config, CPU)
        config = complete(config, data)
        blocks = config.identity()
        blocks.pop("target")
        seen[name] = (json.dumps(blocks, sort_keys=True), first_batches_hash(config, data))
    assert len(set(seen.values())) == 1


def test_real_loop__gives_every_target_the_same_images_and_masks(small, tmp_path, monkeypatch):
    """What the model is called with in two steps of pre-training, of all targets that see one view."""
    seen: dict[str, list[str]] = {}
    forward = MaskedAutoencoder.forward

    def spied(self, images, target, noise=None, **options):
        drawn = hashlib.sha256(images.numpy().tobytes() + noise.numpy().tobytes()).hexdigest()
        seen.setdefault(name, []).append(drawn)
        return forward(self, images, target, noise, **options)

    monkeypatch.setattr(MaskedAutoencoder, "forward", spied)
    fits = {
        "dvae": ("dvae.vocab_size=8", "dvae.width=4", "dvae.fit_epochs=1"),
        "vq_distilled": ("vq_distilled.vocab_size=8", "vq_distilled.fit_epochs=1"),
        "vq_perceptual": ("vq_perceptual.vocab_size=8", "vq_perceptual.fit_epochs=1"),
        "palette": ("palette.num_colors=16",),
        "patch_kmeans": ("patch_kmeans.num_clusters=8",),
    }
    short = ("data.limit_images=64", "pretrain.batch_size=32", "pretrain.epochs=1")
    for name in TARGETS:
        config = small(name, *short, "pretrain.warmup_epochs=0", *fits.get(name, ()))
        data = open_data(config, CPU)
        config = complete(config, data)
        target = fitted_target(config, data, tmp_path, CPU).target
        if target.num_views == 1:
            pretrain(config, data, target, tmp_path / name, CPU)
    assert len(seen) == len(TARGETS) - 1
    assert all(len(draws) == 2 and draws == seen["pixel"] for draws in seen.values())


def test_first_batches_hash__tells_other_seeds_crops_and_masks_apart(small):
    changes = ((), ("seed=1",), ("augment.flip=0",), ("mask.ratio=0.25",), ("mask.sampling=block",))
    hashes = []
    for overrides in changes:
        config = small("pixel", *overrides)
        data = open_data(config, CPU)
        hashes.append(first_batches_hash(complete(config, data), data))
    assert len(set(hashes)) == len(changes)


def test_initial_model__is_equal_for_every_target_but_for_the_head(small):
    states = []
    for name in TARGETS:
        config = complete(small(name), open_data(small(name), CPU))
        state = build_model(config, make_target(config).dim).state_dict()
        states.append({k: v for k, v in state.items() if not k.startswith("decoder_pred")})
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[k], states[0][k]) for k in state)


def test_recipe__cannot_touch_anything_but_the_target(tmp_path):
    from mim_bench.errors import UserError

    for line in ("[pretrain]\nblr = 1", "mask = 0.5", "[params]\nblr = 3"):
        path = tmp_path / "sly.toml"
        path.write_text(
            f'class = "mim_bench.targets.pixel:PixelTarget"\ndescription = "d"\npaper = "p"\n{line}\n'
        )
        with pytest.raises(UserError, match="pretrain|mask|blr"):
            load_config(str(path))


def test_augmented_images_and_masks__do_not_depend_on_the_batch(small):
    from mim_bench.model import masking
    from mim_bench.targets.build import geometry
    from mim_bench.train.pretrain import crop

    config = small("pixel")
    data = open_data(config, CPU)
    config = complete(config, data)
    sampler = masking.MaskSampler(config.mask, geometry(config).grid)

    def views(parts):
        found = {}
        for images, index in data.train.batches(
            parts, crop(config), seed=config.seed, epoch=3, device=CPU
        ):
            noise = sampler.noise(index, seed=config.seed, epoch=3)
            for place, sample in enumerate(index.tolist()):
                found[sample] = (images[place], noise[place])
        return found

    order = torch.randperm(120)
    a, b = views(order.split(50)), views(torch.arange(120).split(7))
    assert a.keys() == b.keys()
    assert all(torch.equal(x, y) for k in a for x, y in zip(a[k], b[k], strict=True))
