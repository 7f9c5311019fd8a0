"""Protocols: features by the official numbers, kNN by brute force, the test split read once."""

import numpy as np
import pytest
import torch
from test_model import GEOMETRY, official_model

from mim_bench import feature
from mim_bench.data import Split
from mim_bench.experiment import execute
from mim_bench.protocols import knn


def test_last_readouts__equal_the_official_probe_features(golden):
    model, want = official_model(), golden("probe")
    images = torch.from_numpy(golden("mae")["images_u8"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        got = feature.readouts(model.encoder, GEOMETRY.normalize(images))
    np.testing.assert_allclose(got[:, 0], want["cls_features"], atol=1e-5)


def test_fine_tune_features__equal_official(golden):
    """Mean of patch tokens of the last block, without the pre-trained norm, then fc_norm."""
    from test_model import OFFICIAL

    from mim_bench.model import build_encoder

    want = golden("probe")
    images = torch.from_numpy(golden("mae")["images_u8"]).permute(0, 3, 1, 2).float() / 255
    classifier = build_encoder(OFFICIAL, GEOMETRY, seed=0, num_classes=10)
    encoder = official_model().encoder.state_dict()
    fresh = {
        "fc_norm.weight": want["fc_norm_weight"],
        "fc_norm.bias": want["fc_norm_bias"],
        "head.weight": want["head_weight"],
        "head.bias": want["head_bias"],
    }
    state = {name: t for name, t in encoder.items() if not name.startswith("norm.")}
    classifier.load_state_dict(state | {name: torch.from_numpy(a) for name, a in fresh.items()})
    with torch.no_grad():
        logits = classifier.eval()(GEOMETRY.normalize(images))
    np.testing.assert_allclose(logits, want["global_pool_logits"], atol=1e-5)


def test_middle_readouts__come_after_half_of_the_blocks():
    encoder = official_model().encoder
    images = torch.rand(2, 3, 32, 32)
    got = feature.readouts(encoder, images)
    tokens = encoder._pos_embed(encoder.patch_embed(images))
    tokens = encoder.blocks[0](tokens)  # depth 3 // 2
    torch.testing.assert_close(got[:, 2], tokens[:, 0])
    torch.testing.assert_close(got[:, 3], tokens[:, 1:].mean(1))


def test_knn__equals_brute_force():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 5, generator=generator) for n in (60, 17))
    labels = torch.randint(4, (60,), generator=generator)
    got = knn.classify(train, labels, test, 4, k=7, temperature=0.1)
    for place, query in enumerate(test):
        similarity = torch.cosine_similarity(train, query[None])
        votes = np.zeros(4)
        for neighbour in similarity.argsort(descending=True)[:7]:
            votes[labels[neighbour]] += np.exp(similarity[neighbour].item() / 0.1)
        assert votes.argmax() == got[place]


def test_knn__does_not_overflow_at_a_low_temperature():
    train = torch.eye(3)
    got = knn.classify(train, torch.arange(3), train, 3, k=3, temperature=1e-3)
    assert got.tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune", "scratch"])
def test_evaluated_images__are_read_once_for_each_encoder(small, tmp_path, monkeypatch, protocol):
    reads: list[int] = []
    batches = Split.batches

    def counted(self, indices, *arguments, **named):
        for images, index in batches(self, indices, *arguments, **named):
            if self.name == "test":
                reads.extend(index.tolist())
            yield images, index

    config = small("pixel", "evaluate.protocols=[]", "linear.augment=true")
    execute(config, out=tmp_path)
    monkeypatch.setattr(Split, "batches", counted)
    config = small("pixel", f"evaluate.protocols={protocol}", "linear.augment=true")
    execute(config, out=tmp_path)
    encoders = 2 if protocol in ("knn", "linear") else 1  # and its random-weights control
    assert sorted(reads) == sorted(list(range(120)) * encoders)


def test_tuning_slice__is_cut_from_the_training_split_and_the_test_split_is_left_alone(
    small, tmp_path, monkeypatch
):
    config = small("pixel", "data.evaluate_on=tune", "data.limit_images=none", "pretrain.epochs=0")
    found = execute(config, out=tmp_path)
    facts = found.records[0].data
    assert facts.split == "tune"
    assert facts.num_train_images + facts.num_evaluated_images == 10_000
    assert 800 < facts.num_evaluated_images < 1200


def test_scratch__ignores_the_pretrained_encoder(small, tmp_path):
    values = [
        execute(small(target, "evaluate.protocols=scratch"), out=tmp_path)
        .records[0]
        .metrics[0]
        .value
        for target in ("pixel", "hog")
    ]
    assert values[0] == values[1]
