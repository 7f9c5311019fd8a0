"""Baselines of a pre-training's loss: predictions of its target that need no network.

On views that training never saw, of the same crops and masks, the loss of

- the mean of each position (of class indices their frequencies);
- the nearest visible patch, copied (values only: a copied class has an infinite loss when wrong);
- ridge regression from the visible pixels and the mask, solved exactly, its penalty chosen on other views;
- the model.

A pre-training counts only if the last is below ridge's (rule 12 of the design). Targets read together by R^2, the
share of the mean's loss that is gone. Patches without any contrast are counted, and left out of a second loss:
targets that normalise a patch blow their noise up to unit scale.

Legend: N views, L patches, M hidden patches of a view, D inputs, V width of the target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench import rng
from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import Data
from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder, compute_values, take, values_at
from mim_bench.target import Geometry, Target
from mim_bench.train import loop, pretrain

_FIT_VIEWS, _CHOICE_VIEWS, _HELD_VIEWS = 4096, 1024, 2048
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Over the mean eigenvalue of the inputs' Gram matrix."""
_MAX_OUTPUTS = 160_000
"""Number of outputs L * V that ridge is solved for at once: more of the views' values do not fit in memory. For a
wider target half of the views are fitted to, and the penalty is chosen at some positions."""
_MAX_NUMBERS, _LEAST_VIEWS = 250_000_000, 64
"""Predictions in memory, and views that are measured all the same."""
_LEAST_IMAGES = 8
_LEAST_PROBABILITY = 1e-3
_BATCH_SIZE = 256


@dataclass(frozen=True)
class _Views:
    inputs: Tensor
    """(N, D): normalised visible pixels, 0 where hidden, and the mask."""
    values: Tensor
    """Target values as `Target.forward` returns them."""
    hidden: Tensor
    """(N, M) hidden patches."""
    visible: Tensor
    """(N, L - M) visible patches."""
    is_flat: Tensor
    """(N, M): hidden patches whose pixels are all equal."""
    prediction: Tensor
    """(N, M, V) of the model, at hidden patches; empty for the views that ridge is solved and chosen on."""


@torch.no_grad()
def gate_losses(
    config: RunConfig,
    data: Data,
    target: Target,
    model: MaskedAutoencoder | None,
    device: torch.device,
) -> dict[str, float]:
    """Losses of the predictions above, `model_r2` and so on, `flat_share`; what cannot be computed is left out.

    `model`: unset for the target alone. Of a target that compares views, which hides nothing, there are none, nor of
    fewer than 8 images, too few to fit, choose and measure on.
    """
    if target.num_views > 1 or data.train.num_images < _LEAST_IMAGES:
        return {}
    order = rng.permutation(data.train.num_images, seed=config.seed, epoch=0, stream="gate")
    sizes = _sizes(len(order), target.dim * target.geometry.num_patches)
    fit, choice, held_views = (
        _views(config, data, target, model, device, index, predicts=number == 2)
        for number, index in enumerate(order[: sum(sizes)].split(sizes))
    )
    losses = {"model": _loss(target, held_views, held_views.prediction)} if model else {}
    parts = fit.values.split(32)
    mean = torch.stack([as_numbers(target, part).sum(0) for part in parts]).sum(0) / sizes[0]
    losses["mean"] = _loss(
        target, held_views, _at_hidden(_scores(target, held_views, mean[None]), held_views)
    )
    if held_views.values.is_floating_point():
        copied = take(held_views.values, _nearest_visible(held_views, target.geometry))
        losses["copy"] = _loss(target, held_views, _scores(target, held_views, copied))
    losses["ridge"] = _ridge(target, fit, choice, held_views, mean)
    flat = held_views.is_flat
    values = {f"{name}_loss": float(loss.mean()) for name, loss in losses.items()}
    values["flat_share"] = float(flat.float().mean())
    if 0 < values["flat_share"] < 1:
        values |= {
            f"{name}_loss_without_flat": float(loss[~flat].mean()) for name, loss in losses.items()
        }
    mean_loss = max(values["mean_loss"], 1e-12)
    return values | {
        f"{name}_r2": 1 - values[f"{name}_loss"] / mean_loss for name in losses if name != "mean"
    }


def _sizes(num_images: int, width: int) -> list[int]:
    """Views to fit, to choose and to measure on; of few images an eighth, and a quarter; of a wide target few."""
    choice, num_held = min(_CHOICE_VIEWS, num_images // 8), min(_HELD_VIEWS, num_images // 4)
    num_held = min(num_held, max(_LEAST_VIEWS, _MAX_NUMBERS // width))
    max_fit = _FIT_VIEWS // 2 if width > _MAX_OUTPUTS else _FIT_VIEWS
    return [min(max_fit, num_images - choice - num_held), choice, num_held]


def _views(
    config: RunConfig,
    data: Data,
    target: Target,
    model: MaskedAutoencoder | None,
    device: torch.device,
    index: Tensor,
    *,
    predicts: bool,
) -> _Views:
    batches = index.split(_BATCH_SIZE)
    parts = list(_parts(config, data, target, model, device, batches, predicts))
    return _Views(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _parts(
    config: RunConfig,
    data: Data,
    target: Target,
    model: MaskedAutoencoder | None,
    device: torch.device,
    batches: Sequence[Tensor],
    predicts: bool,
) -> Iterator[tuple[Tensor, ...]]:
    epoch = config.pretrain.epochs  # the first that training does not reach
    geometry = target.geometry
    sampler = masking.MaskSampler(config.mask, geometry.grid)
    if model is not None:
        model.eval()
    for views, index in pretrain.views(config, data, batches, epoch, device, data.num_workers):
        images = views.float() / 255
        noise = sampler.noise(index, seed=config.seed, epoch=epoch, device=device)
        shuffle, mask = masking.split(noise, sampler.num_visible)
        visible, hidden = shuffle.tensor_split([sampler.num_visible], dim=1)
        patches = geometry.patchify(images)
        normalised = geometry.patchify(geometry.normalize(images))
        inputs = torch.cat([(normalised * ~mask[:, :, None]).flatten(1), mask.float()], dim=1)
        flat = (patches.amax(-1) == patches.amin(-1)).gather(1, hidden)
        prediction = images.new_empty(0)
        if predicts and model is not None:
            with loop.autocast(device, config.runtime):
                prediction = model.predict(images, shuffle, hidden_only=True).float()
        yield inputs, compute_values(target, images), hidden, visible, flat, prediction


def _loss(target: Target, views: _Views, prediction: Tensor) -> Tensor:
    """Predictions at hidden patches (N, M, V) -> (N, M)."""
    return target.loss(prediction, values_at(views.values, views.hidden)).float()


def as_numbers(target: Target, values: Tensor) -> Tensor:
    """Values -> (N, L, V) that can be averaged and regressed: class indices one-hot (K of a patch: all in a row)."""
    if values.is_floating_point():
        return values.float()
    if values.ndim == 2:
        return F.one_hot(values, target.dim).float()
    return F.one_hot(values, target.dim // values.shape[2]).flatten(2).float()


def _scores(target: Target, views: _Views, outputs: Tensor) -> Tensor:
    """Averages or regressed outputs (N, ., V) -> what the head would give: logits for classes."""
    has_logits = target.are_probabilities or not views.values.is_floating_point()
    return outputs.clamp_min(_LEAST_PROBABILITY).log() if has_logits else outputs


def _at_hidden(outputs: Tensor, views: _Views) -> Tensor:
    """(N, L, V) or (1, L, V) -> (N, M, V)."""
    return take(outputs.expand(len(views.hidden), -1, -1).contiguous(), views.hidden)


def _nearest_visible(views: _Views, geometry: Geometry) -> Tensor:
    """(N, M): of each hidden patch the visible one at the least distance on the grid."""
    rows, columns = geometry.grid
    position = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    distance = torch.cdist(position, position).to(views.hidden.device)
    to_visible = distance[views.hidden].gather(  # (N, M, L) -> (N, M, L - M)
        2, views.visible[:, None].expand(-1, views.hidden.shape[1], -1)
    )
    return views.visible.gather(1, to_visible.argmin(2))


def _ridge(target: Target, fit: _Views, choice: _Views, held_views: _Views, mean: Tensor) -> Tensor:
    """Loss (N, M) of ridge regression on the held views, by the penalty that is best on the views to choose on.

    Solved in the space of the views, N x N, so that no matrix of inputs by outputs is needed.
    """
    center = fit.inputs.mean(0)
    x = fit.inputs - center
    gram = x @ x.T
    scale = gram.trace() / min(x.shape)
    per_chunk = max(1, _MAX_OUTPUTS // mean.shape[1])
    chunks = [range(i, min(i + per_chunk, len(mean))) for i in range(0, len(mean), per_chunk)]

    def factor(penalty: float) -> Tensor:
        shifted = gram + penalty * scale * torch.eye(len(gram), device=gram.device)
        return torch.linalg.cholesky(shifted)

    choice_products, held_products = (
        (views.inputs - center) @ x.T for views in (choice, held_views)
    )

    def loss(
        views: _Views, products: Tensor, factor: Tensor, chunk: range
    ) -> tuple[Tensor, Tensor]:
        """Loss of the hidden patches among some positions, and which these are, (N, M)."""
        positions = slice(chunk.start, chunk.stop)
        y = as_numbers(target, fit.values[:, positions]) - mean[positions]
        weight = torch.cholesky_solve(y.flatten(1), factor)
        outputs = (products @ weight).unflatten(1, y.shape[1:]) + mean[positions]
        is_there = (views.hidden >= chunk.start) & (views.hidden < chunk.stop)
        view, patch = is_there.nonzero()[:, 0], views.hidden[is_there]
        prediction = _scores(target, views, outputs[view, patch - chunk.start][:, None])
        return target.loss(prediction, views.values[view, patch][:, None]).float()[:, 0], is_there

    some = chunks[:: max(1, len(chunks) // 2)]

    def on_choice(penalty: float) -> float:
        solved = factor(penalty)
        return float(
            torch.cat([loss(choice, choice_products, solved, chunk)[0] for chunk in some]).mean()
        )

    best = factor(min(_PENALTIES, key=on_choice))
    losses = torch.empty(held_views.hidden.shape, device=gram.device)
    for chunk in chunks:
        values, is_there = loss(held_views, held_products, best, chunk)
        losses[is_there] = values
    return losses
