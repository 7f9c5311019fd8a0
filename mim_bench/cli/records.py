"""Records on the terminal, as `run` and `eval` print them."""

from typing import TYPE_CHECKING

from mim_bench.cli.options import print_line, print_table

if TYPE_CHECKING:
    from mim_bench.records.record import Record

_BASELINES = {"pixels": "raw pixels", "pca": "PCA"}


def print_records(records: "list[Record]", *, readouts: bool) -> None:
    """A table of what records hold, and what that shows; `readouts`: every one, not the declared one alone."""
    from mim_bench.analysis import gates
    from mim_bench.records.measure import measures

    rows = []
    for record in records:
        facts = record.pretrain
        fit_seconds = facts.fit.get("fit_seconds", 0.0) if facts else 0.0
        seconds = (facts.seconds if facts else 0) + fit_seconds + record.seconds
        for position, (name, measure) in enumerate(measures(record).items()):
            is_segment = measure.metrics[0].name == "miou"  # its baseline is shown too
            if "@" in name and not (readouts or is_segment):
                continue
            value, control = f"{measure.value:.4g}", ""
            if measure.is_fraction:
                value = f"{100 * measure.value:.1f} ± {100 * measure.stderr:.1f} %{' mIoU' * is_segment}"
                control = f"{100 * measure.control:.1f} %" if measure.control is not None else "-"
            speed = f"{facts.images_per_s:,.0f}" if facts and not position else ""
            time = "" if position else f"{seconds:.0f}"
            if record.protocol == "baselines":
                baseline, _, probe = name.removeprefix("baselines ").partition(":")
                name = f"{probe}, {_BASELINES.get(baseline, f'{record.target} as a feature')}"
            rows.append([record.target, name, value, control, speed, time])
    if not records:
        return
    print_table(["target", "measure", "value", "random weights", "images/s", "wall time s"], rows)
    evaluate = records[0].config["evaluate"]
    times = "; images/s of pre-training; wall time of fit, pre-training and the protocol"
    print_line(
        f"accuracies: top-1 on the {records[0].data.split} split, read at "
        f"{evaluate['layer']}/{evaluate['pooling']}{' unless @ names another readout' * readouts}; ± standard "
        "error over its images" + ("; wall time of the protocol" if records[0].external else times),
        style="dim",
    )
    if verdict := gates.verdict(records):
        print_line(verdict)
