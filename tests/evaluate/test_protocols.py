"""Protocols: features by the official numbers, kNN by brute force, the test split read once."""

import json

import numpy as np
import pytest
import torch
from official import GEOMETRY, official_model

from mim_bench.data.split import Split
from mim_bench.errors import UserError
from mim_bench.evaluate import features, knn
from mim_bench.evaluate.logistic import logistic_regression, tuned_logistic_regression
from mim_bench.experiment.run import execute
from mim_bench.records.record import read_correct
from mim_bench.records.run_folder import record_path
from mim_bench.train.log import read_log


def test_last_readouts__equal_the_official_probe_features(golden):
    model, want = official_model(), golden("probe")
    images = torch.from_numpy(golden("mae")["images_u8"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        got = features.readouts(model.encoder, GEOMETRY.normalize(images))
    np.testing.assert_allclose(got[:, 0], want["cls_features"], atol=1e-5)


def test_fine_tune_features__equal_official(golden):
    """Mean of patch tokens of the last block, without the pre-trained norm, then fc_norm."""
    from official import OFFICIAL

    from mim_bench.model.mae import build_encoder

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
    got = features.readouts(encoder, images)
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


@pytest.mark.parametrize(
    "protocol",
    ["knn", "linear", "attentive", "finetune", "scratch", "scratch_flops", "low_shot", "partial"],
)
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
    # with the random-weights control; partial: one classifier for 0.5 and one for 1 block of 2
    encoders = 1 if protocol in ("finetune", "scratch", "scratch_flops") else 2
    assert sorted(reads) == sorted(list(range(120)) * encoders)


def test_probes__learn_nothing_from_the_test_images(small, tmp_path, monkeypatch):
    """Answers for two thirds of the test images stay as they are when the last third is inverted."""
    batches = Split.batches

    def inverted(self, *arguments, **named):
        for images, index in batches(self, *arguments, **named):
            is_third = (index % 3 == 0).view(-1, 1, 1, 1) & (self.name == "test")
            yield torch.where(is_third, 255 - images, images), index

    names = ("linear", "knn", "low_shot", "attentive", "baselines")
    config = small("hog", f"evaluate.protocols={','.join(names)}", "linear.solver=lbfgs")
    plain = execute(config, out=tmp_path / "plain")
    monkeypatch.setattr(Split, "batches", inverted)
    other = execute(config, out=tmp_path / "inverted")
    kept = np.arange(120) % 3 > 0
    for name in names:
        mine, theirs = (read_correct(record_path(one.folder, name)) for one in (plain, other))
        assert mine.keys() == theirs.keys()
        assert all((mine[key][kept] == theirs[key][kept]).all() for key in mine), name
        assert any((mine[key] != theirs[key]).any() for key in mine), "the inverted ones were read"


def test_solver__that_stops_early_says_that_it_is_not_converged(small, tmp_path, monkeypatch):
    monkeypatch.setattr("mim_bench.evaluate.logistic._MAX_ITERATIONS", 2)
    config = small("pixel", "evaluate.protocols=linear,low_shot,baselines", "linear.solver=lbfgs")
    for record in execute(config, out=tmp_path).records:
        assert any("NOT converged" in note for note in record.notes), record.protocol


def test_fine_tuning__ends_with_its_last_epoch_whatever_the_held_out_curve_says(
    small, tmp_path, monkeypatch
):
    from mim_bench.evaluate import finetune

    weights = []
    for falling in (False, True):
        given = context(
            small, tmp_path / str(falling), "finetune.holdout_fraction=0.2", "finetune.epochs=3"
        )
        model = finetune.build_classifier(given, given.config.finetune, pretrained=True)
        if falling:
            measured = iter([0.9, 0.5, 0.1])
            correct = finetune._correct

            def fake(context, model, split, index, measured=measured, correct=correct):
                found = correct(context, model, split, index)
                if split.name == "test":
                    return found
                return np.arange(100) < 100 * next(measured)

            monkeypatch.setattr(finetune, "_correct", fake)
        answer = finetune.train_classifier(given, model, "finetune", given.config.finetune)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    assert answer.curves["model"] == (0.9, 0.5, 0.1)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_fine_tuning__begins_at_every_tensor_of_the_encoder(small, tmp_path):
    from mim_bench.evaluate import finetune

    given = context(small, tmp_path)
    model = finetune.build_classifier(given, given.config.finetune, pretrained=True).state_dict()
    taken = {k: v for k, v in given.features.encoder.state_dict().items() if k[:5] != "norm."}
    assert len(taken) > 20 and all(torch.equal(model[name], value) for name, value in taken.items())
    part = given.features.encoder.blocks[1].attn.proj
    part.register_parameter("bias", None)
    with pytest.raises(UserError, match="missing"):
        finetune.build_classifier(given, given.config.finetune, pretrained=True)


def test_normalisation__is_that_of_the_training_images(small):
    from mim_bench.data.run_data import open_data

    data = open_data(small("pixel", "data.limit_images=none"), torch.device("cpu"))
    mean, std = data.normalisation
    pixels = data.train.pixels.double() / 255
    assert mean == pytest.approx((float(pixels.mean()),), abs=2e-3)
    assert std == pytest.approx((float(pixels.std()),), abs=2e-3)
    assert abs(float((data.evaluate.pixels.double() / 255).mean()) - mean[0]) > 1e-5


def test_tuning_slice__is_cut_from_the_training_split_and_the_test_split_is_left_alone(
    small, tmp_path
):
    from mim_bench.data.run_data import open_data

    cpu = torch.device("cpu")
    whole = open_data(small("pixel", "data.limit_images=none"), cpu)
    cut = open_data(small("pixel", "data.limit_images=none", "data.evaluate_on=tune"), cpu)
    train, test = (
        {image.numpy().tobytes() for image in split.pixels}
        for split in (whole.train, whole.evaluate)
    )
    tuned, kept = (
        {image.numpy().tobytes() for image in split.pixels} for split in (cut.evaluate, cut.train)
    )
    assert tuned <= train and not (tuned & (test - train)) and not (tuned & kept)
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
    assert not list(tmp_path.glob("*/pretrain.json"))  # and nothing is pre-trained for it


def context(small, tmp_path, *overrides):
    from mim_bench.data.run_data import complete, open_data
    from mim_bench.evaluate.context import EvalContext, Features
    from mim_bench.model.mae import build_encoder
    from mim_bench.targets.build import geometry

    config = small("pixel", *overrides)
    data = open_data(config, torch.device("cpu"))
    config = complete(config, data)
    encoder = build_encoder(config.model, geometry(config), seed=5)
    return EvalContext(Features(config, data, encoder, torch.device("cpu")), tmp_path, "key")


TRAINED = {
    0.5: ("blocks.2.norm2", "blocks.2.mlp"),
    1: ("blocks.2.",),
    2: ("blocks.1.", "blocks.2."),
}


@pytest.mark.parametrize("num_blocks", TRAINED)
def test_partial__moves_the_last_blocks_and_nothing_else(small, tmp_path, num_blocks):
    from mim_bench.evaluate import finetune, partial

    given = context(small, tmp_path, "model.depth=3", "finetune.drop_path=0.2")
    model = finetune.build_classifier(given, given.config.finetune, pretrained=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts = partial.trained_part(model, num_blocks)
    finetune.train_classifier(given, model, "partial/x", given.config.finetune, parts)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    expected = {n for n in before if n.startswith(("fc_norm.", "head.", *TRAINED[num_blocks]))}
    assert moved == expected


def test_partial__evaluates_every_entry_below_the_depth(small, tmp_path):
    config = small(
        "pixel", "model.depth=3", "evaluate.protocols=partial", "finetune.holdout_fraction=0.2"
    )
    record = execute(config, out=tmp_path).records[0]
    names = [metric.readout for metric in record.metrics]
    assert names == ["blocks=0.5", "blocks=1", "blocks=2"]  # 4 and more are fine-tuning
    assert set(record.curves) == set(names) and all(len(c) == 2 for c in record.curves.values())


def test_partial_blocks__must_be_a_half_or_whole(small):
    from mim_bench.errors import UserError

    with pytest.raises(UserError, match="allowed: 0.5 and whole numbers"):
        small("pixel", "partial.blocks=[0.7]")


def test_holdout__is_not_trained_on_and_measured_after_every_epoch(small, tmp_path, monkeypatch):
    from mim_bench.evaluate import finetune

    given = context(small, tmp_path, "finetune.holdout_fraction=0.25", "finetune.epochs=3")
    kept, held_out = finetune.hold_out(120, 0.25)
    assert len(held_out) == 30 and sorted([*kept.tolist(), *held_out.tolist()]) == list(range(120))
    trained: set[int] = set()
    plain = finetune.ClassifyTask.loss

    def seen(self, inputs, index, **place):
        trained.update(index.tolist())
        return plain(self, inputs, index, **place)

    monkeypatch.setattr(finetune.ClassifyTask, "loss", seen)
    schedule = given.config.finetune
    model = finetune.build_classifier(given, schedule, pretrained=True)
    answer = finetune.train_classifier(given, model, "finetune", schedule)
    assert trained and not trained & set(held_out.tolist())
    assert len(answer.curves["model"]) == 3 and answer.correct["model"].shape == (120,)


@pytest.mark.parametrize(
    ("last", "said"), [(0.5, "+40.0 points"), (0.1, "+0.0 points"), (0.0, "-10.0 points")]
)
def test_curve__says_whether_it_has_become_flat(last, said):
    from mim_bench.evaluate import finetune

    assert finetune._flatness("finetune", [0.0] * 6 + [0.1, 0.1, last, last]) == (
        f"finetune: held-out accuracy {said} in the last fifth of its epochs"
    )


def test_scratch_flops__has_the_flops_of_pretraining_and_fine_tuning(small, tmp_path):
    from mim_bench.evaluate import flops, scratch
    from mim_bench.targets.build import geometry

    given = context(small, tmp_path, "pretrain.epochs=400", "scratch.holdout_fraction=0.25")
    config, classes = given.config, given.data.num_classes
    found = scratch.equal_flops(config, classes)
    supervised = flops.classifier(config.model, geometry(config), classes).step
    budget = 400 * flops.step(config) + config.finetune.epochs * supervised
    assert found.epochs * 0.75 * supervised == pytest.approx(budget, rel=0.02)
    assert found.warmup_epochs / found.epochs == pytest.approx(
        config.scratch.warmup_epochs / config.scratch.epochs
    )
    none = config.model_copy(
        update={
            name: getattr(config, name).model_copy(update={"epochs": 0})
            for name in ("pretrain", "finetune")
        }
    )
    assert scratch.equal_flops(none, classes).epochs == 1


def test_scratch_protocols__train_by_their_own_section(small, tmp_path):
    given = ["evaluate.protocols=scratch,scratch_flops", "scratch.epochs=3", "finetune.epochs=1",
             "scratch.holdout_fraction=0.2", "scratch.layer_decay=1.0"]  # fmt: skip
    records = {r.protocol: r for r in execute(small("pixel", *given), out=tmp_path).records}
    assert len(records["scratch"].curves["model"]) == 3
    assert "scratch_flops: " in records["scratch_flops"].notes[0]
    assert "epochs for the FLOPs of pre-training" in records["scratch_flops"].notes[0]
    spent = {name: record.metrics[1] for name, record in records.items()}
    assert [metric.name for metric in spent.values()] == ["train_flops", "train_flops"]
    epochs = {"scratch": 3, "scratch_flops": len(records["scratch_flops"].curves["model"])}
    each = {name: metric.value / epochs[name] for name, metric in spent.items()}
    assert each["scratch"] == each["scratch_flops"]  # the same images and model
    log = next(tmp_path.glob("*/scratch.jsonl")).read_text().splitlines()
    assert spent["scratch"].n == max(json.loads(line).get("step", 0) for line in log)


def test_low_shot__draws_equally_many_of_each_class_and_the_same_for_everybody():
    from mim_bench.evaluate import low_shot

    labels = torch.arange(1000) % 10
    chosen = low_shot.balanced(labels, 0.05, 0)
    assert labels[chosen].bincount().tolist() == [5] * 10 and len(set(chosen.tolist())) == 50
    assert torch.equal(chosen, low_shot.balanced(labels, 0.05, 0))
    assert set(chosen.tolist()) != set(low_shot.balanced(labels, 0.05, 1).tolist())
    assert low_shot.balanced(labels, 1e-6, 0).numel() == 10  # at least one each


@pytest.mark.parametrize("tuned", [False, True])
def test_logistic_regression__is_at_the_minimum_of_its_objective(tuned):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 6, generator=generator).double()
    labels = torch.randint(3, (80,), generator=generator)
    if tuned:
        solution = tuned_logistic_regression(features, labels, 3, (0.5,), 0.1)
    else:
        solution = logistic_regression(features, labels, 3, c=0.5)
    weight = solution.weight
    assert solution.is_converged
    residual = solution.logits(features).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    # gradient of c * sum of cross-entropies + |W|^2 / 2
    torch.testing.assert_close(
        0.5 * residual.T @ features + weight, torch.zeros_like(weight), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(residual.sum(0), torch.zeros(3).double(), atol=4e-3, rtol=0)


def test_penalty__is_the_one_that_generalises():
    """Labels that the features say nothing of want the strongest penalty; separable ones the weakest."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 20, generator=generator)
    noise = torch.randint(3, (300,), generator=generator)
    told = (features[:, :3] * 4).argmax(1)
    chosen = [tuned_logistic_regression(features, y, 3, (1e-4, 1e2), 0.2).c for y in (noise, told)]
    assert chosen == [1e-4, 1e2]


def test_solved_linear__says_that_it_is_converged_and_what_it_chose(small, tmp_path):
    config = small("pixel", "evaluate.protocols=linear", "linear.solver=lbfgs")
    (record,) = execute(config, out=tmp_path).records
    assert record.notes[0].count(", converged (") == 4 and "NOT" not in record.notes[0]
    assert not (tmp_path / config.run_id / "linear.jsonl").exists()


def test_trained_linear__says_how_much_its_loss_still_falls(small, tmp_path):
    config = small("pixel", "evaluate.protocols=linear", "runtime.log_every_steps=1")
    result = execute(config, out=tmp_path)
    losses = [line["loss"] for line in read_log(result.folder / "linear.jsonl")]
    fall = 100 * (losses[-2] - losses[-1]) / losses[-2]  # 6 steps: a tenth is one
    assert (
        f"over its last tenth the training loss fell by {fall:.1f} %" in result.records[0].notes[-1]
    )


def test_speed__times_steps_and_trains_nothing(small, tmp_path):
    config = small("hog", "evaluate.protocols=speed", "speed.steps=5", "speed.warmup_steps=1")
    result = execute(config, out=tmp_path)
    values = {metric.name: metric.value for metric in result.records[0].metrics}
    assert values["images_per_s"] == pytest.approx(30 / values["step_s"])
    assert 0 < values["target_s"] < values["step_s"] and values["step_flops"] > 0
    assert result.records[0].pretrain is None and not (result.folder / "pretrain.json").exists()
    assert execute(config, out=tmp_path).was_finished


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("protocol", "split"), [("knn", "train"), ("linear", "train"), ("finetune", "test")]
)
def test_features_that_are_not_finite__name_protocol_and_split(
    small, tmp_path, monkeypatch, protocol, split, value
):
    from mim_bench.errors import UserError
    from mim_bench.evaluate.protocols import evaluate
    from mim_bench.model.vit import Encoder
    from mim_bench.train.progress import Quiet

    given = context(small, tmp_path, "finetune.epochs=1", "finetune.holdout_fraction=0")
    readouts, head = features.readouts, Encoder.forward_head

    def broken_head(self, *args, **options):
        logits = head(self, *args, **options)
        return logits if self.training else logits * value

    monkeypatch.setattr(features, "readouts", lambda *args: readouts(*args) * value)
    monkeypatch.setattr(Encoder, "forward_head", broken_head)
    with pytest.raises(UserError, match=f"{split} images are not finite"):
        evaluate(protocol, given.features, given.features, tmp_path, Quiet(), None, "test")
    assert not (tmp_path / "records").exists()


def test_control__is_evaluated_once_for_all_targets_of_a_seed(small, tmp_path, monkeypatch):
    evaluated = []
    run = knn.run
    monkeypatch.setattr(knn, "run", lambda context: evaluated.append(context.key) or run(context))

    def control(target, seed):
        config = small(target, "evaluate.protocols=knn", f"seed={seed}")
        return execute(config, out=tmp_path).records[0].control

    first, same, other = control("pixel", 0), control("hog", 0), control("hog", 1)
    assert first == same != other
    assert sum(key.endswith("control") for key in evaluated) == 2 and len(evaluated) == 5
