"""Partial fine-tuning: the last k blocks are trained with labels, the rest stays as pre-trained.

MAE (He et al. 2022), section 4.2 and Figure 9: the settings of fine-tuning; k = 0.5 trains the MLP half of
the last block alone. k = 0 is the linear probe and k = depth is fine-tuning, whose own records a figure
takes its ends from. The fresh norm and the head are always trained.

Deliberate difference: one length for every k, where MAE takes the best of 50, 100 and 200 epochs by
validation accuracy. Frozen blocks run without drop path.
"""

from torch import nn

from mim_bench.evaluate import finetune
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.model.vit import Encoder


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy for every entry of `partial.blocks` below the encoder's depth."""
    result = ProtocolResult({})
    for num_blocks in context.config.partial.blocks:
        if num_blocks >= context.config.model.depth:
            continue
        schedule = context.config.finetune
        model = finetune.build_classifier(context, schedule, pretrained=True)
        name = readout(num_blocks)
        part = finetune.train_classifier(
            context, model, f"partial/{num_blocks:g}", schedule, trained_part(model, num_blocks)
        )
        result.correct[name] = part.correct["model"]
        if "model" in part.curves:
            result.curves[name] = part.curves["model"]
    return result


def readout(num_blocks: float) -> str:
    """Name of the readout among a record's metrics."""
    return f"blocks={num_blocks:g}"


def trained_part(model: Encoder, num_blocks: float) -> list[nn.Module]:
    """The modules that are trained; everything else of `model` is frozen here."""
    parts: list[nn.Module] = [model.fc_norm, model.head]
    if num_blocks == 0.5:
        last = model.blocks[-1]
        assert isinstance(last, nn.Module)
        parts += [part for name, part in last.named_children() if name in _MLP_HALF]
    else:
        parts += list(model.blocks)[len(model.blocks) - int(num_blocks) :]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return parts


_MLP_HALF = ("norm2", "mlp", "ls2", "drop_path2")
"""timm's names of the children of a block's second half."""
