"""Tables of compare.py: figures with bootstrap intervals over patients and seeds, the same draws for all methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from compare_chart import methods_chart
from compare_parts import PROBES, stored_rows
from judging import interval

from afire_monai.core.files import whole_file, write_rows
from afire_monai.evaluation.bootstrap import figure_draws, macro_mean, patient_weights

REPEATS = 1000
LEAST = 5  # test images with a label, and without it, from which its AUROC is part of a mean over labels
WORDS = {"dice": "Dice", "pointing": "heatmap points at the lesion", "pixel_auroc": "pixel AUROC of heatmaps"}
Seeds = dict[int, np.ndarray]  # seed -> (1 + R,): the value and its bootstrap draws
Draws = dict[tuple[str, str, str], dict[str, Seeds]]  # (kind, task, what) -> method -> seeds


def auroc_draws(truth: np.ndarray, scores: np.ndarray, groups: np.ndarray, repeats: int = REPEATS) -> np.ndarray:
    """Return (C, 1 + repeats): AUROC of the sample and of draws of patients."""
    levels = np.full(truth.shape[1], 0.5)
    return figure_draws(truth, scores.astype(float), groups, levels, ("auroc",), repeats, 0)["auroc"]


def mean_draws(values: np.ndarray, groups: np.ndarray, repeats: int = REPEATS) -> np.ndarray:
    """Return (1 + repeats,): mean over cases of the sample and of draws of patients; NaN cases are left out."""
    known = ~np.isnan(values)
    weights = np.concatenate([*patient_weights(groups, repeats, 0)])[:, known]
    draws: np.ndarray = weights @ values[known] / weights.sum(1)
    return draws


def row_draws(row: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Return the draws of all figures of one result, by name."""
    kind, _, _, fraction, _ = row["key"].split("/")
    saved = np.load(folder / "scores" / f"{row['key'].replace('/', '_')}.npz")
    draws = {}
    if kind == "classification":
        truth = saved["truth"]
        enough = np.minimum((truth == 1).sum(0), (truth == 0).sum(0)) >= LEAST
        if not enough.any():  # all are rare, as a single label may be: no better figure than that of all
            enough[:] = True
        found = auroc_draws(truth[:, enough], saved["scores"][:, enough], saved["groups"])
        some = "" if enough.all() else f", {enough.sum()} of {len(enough)} labels count"
        draws[f"{float(fraction):.0%} of labels{some}"] = macro_mean(found, list(range(len(found))))
    elif "scores" in saved:
        found = auroc_draws(saved["truth"].astype(float), saved["scores"], saved["groups"])
        draws |= dict(zip(PROBES if kind == "probe" else ["no labels"], found, strict=True))
    for name, words in WORDS.items():
        if f"case_{name}" in saved:
            draws[words] = mean_draws(saved[f"case_{name}"].astype(float), saved["case_groups"])
    return draws


def collect(out: Path) -> Draws:
    """Read the results as bootstrap draws by figure, method and seed."""
    draws: Draws = {}
    rows = {row["key"]: row for row in stored_rows(out / "results.jsonl")}  # two processes may have done the same
    for row in rows.values():
        kind, task, method, _, seed = row["key"].split("/")
        for what, found in row_draws(row, out).items():
            draws.setdefault((kind, task, what), {}).setdefault(method, {})[int(seed)] = found
    return draws


def seed_mean(seeds: Seeds) -> np.ndarray:
    """Return the mean over seeds, (1 + R,): of the values, and of each draw of patients with seeds drawn anew.

    The same seeds are drawn each time, so that methods with as many stay paired.
    """
    values = np.stack([seeds[seed] for seed in sorted(seeds)])
    count, width = values.shape
    drawn = np.random.default_rng(0).integers(count, size=(width - 1, count))
    draws = np.take_along_axis(values[:, 1:].T, drawn, axis=1).mean(1)
    return np.concatenate([values[:, :1].mean(0), draws])


def paired(seeds: Seeds, base: Seeds) -> Seeds:
    """Return what ``seeds`` has more than ``base``, with the seeds that both have."""
    return {seed: seeds[seed] - base[seed] for seed in seeds.keys() & base.keys()}


def seeds_ahead(gains: Seeds) -> str:
    """Say with how many of the seeds the gain is above 0."""
    return f"{sum(bool(gain[0] > 0) for gain in gains.values())} of {len(gains)}"


def level_with_best(methods: dict[str, Seeds]) -> set[str]:
    """Name the methods whose paired difference to the best one includes 0 (or has no seed), the best one with them."""
    best = max(methods, key=lambda name: float(seed_mean(methods[name])[0]))
    behind = {name: paired(methods[best], seeds) for name, seeds in methods.items() if name != best}
    clear = {name for name, gain in behind.items() if gain and np.nanpercentile(seed_mean(gain)[1:], 2.5) > 0}
    return methods.keys() - clear


def print_summary(draws: Draws, names: list[str]) -> None:
    """Print one row for each figure and one column for each method: mean over seeds; bold: level with the best."""
    print(f"\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for key, methods in draws.items():
        mean = {name: seed_mean(seeds) for name, seeds in methods.items()}
        level = level_with_best(methods)
        cells = [f"{mean[name][0]:.3f}" if name in mean else "" for name in names]
        cells = [f"**{cell}**" if name in level else cell for name, cell in zip(names, cells, strict=True)]
        print(f"| {', '.join(key)} | {' | '.join(cells)} |")


CSV_COLUMNS = ["task", "data", "figure", "method", "mean", "low", "high", "level_with_best", "seeds", "sd_of_seeds"]
CSV_COLUMNS += ["against", "gain", "gain_low", "gain_high", "seeds_ahead"]


def figure_rows(key: tuple[str, str, str], methods: dict[str, Seeds], names: list[str], base: str) -> list[list[str]]:
    """Return the rows of CSV_COLUMNS for one figure: means and percentiles over patients and seeds, gains over base."""

    def three(draws: np.ndarray) -> list[str]:
        return [f"{value:.3f}" for value in (draws[0], *np.nanpercentile(draws[1:], [2.5, 97.5]))]

    level = level_with_best(methods)
    rows = []
    for name in (n for n in names if n in methods):
        values = [float(draws[0]) for draws in methods[name].values()]
        spread = f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        gains = paired(methods[name], methods[base]) if base in methods and name != base else {}
        gain = [base, *three(seed_mean(gains)), seeds_ahead(gains).split()[0]] if gains else [""] * 5
        mean = three(seed_mean(methods[name]))
        rows.append([*key, name, *mean, "yes" if name in level else "no", str(len(values)), spread, *gain])
    return rows


def print_figure(key: tuple[str, str, str], methods: dict[str, Seeds], names: list[str], base: str) -> None:
    """Print one figure of all methods with intervals, and what each has more than ``base``."""
    mean = {name: seed_mean(seeds) for name, seeds in methods.items()}
    level = level_with_best(methods)
    print(
        f"\n**{', '.join(key)}**\n\n| method | mean (95 %) | seeds | s.d. of seeds | minus {base} | seeds ahead of it |"
    )
    print("|---|---|---|---|---|---|")
    for name in (n for n in names if n in mean):
        text = f"**{interval(mean[name])}**" if name in level else interval(mean[name])
        values = [float(d[0]) for d in methods[name].values()]
        spread = f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        gains = paired(methods[name], methods[base]) if base in mean and name != base else {}
        gain, ahead = (interval(seed_mean(gains), "+"), seeds_ahead(gains)) if gains else ("", "")
        print(f"| {name} | {text} | {len(values)} | {spread} | {gain} | {ahead} |")


def print_cost(out: Path, presented: dict[str, int]) -> None:
    """Print what each method costs, with the minutes that its training takes if the images presented are known."""
    if not (out / "cost.json").exists():
        return
    costs = json.loads((out / "cost.json").read_text())
    columns = ["method", "images/s", "peak memory, GiB", *(["images presented", "minutes"] if presented else [])]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, row in costs.items():
        cells = [name, f"{row['images_per_second']:.1f}", f"{row['peak_gib']:.2f}"]
        if presented:
            count = presented.get(name)
            cells += [f"{count}", f"{count / row['images_per_second'] / 60:.0f}"] if count else ["", ""]
        print(f"| {' | '.join(cells)} |")


def print_tables(
    out: Path,
    order: list[str],
    base: str,
    presented: dict[str, int] | None = None,
    chart: Path | None = None,
    table: Path | None = None,
) -> None:
    """Print cost, a summary, and each figure with intervals; ``chart`` is a PNG and ``table`` a CSV of them."""
    print_cost(out, presented or {})
    draws = dict(sorted(collect(out).items()))
    if not draws:
        raise SystemExit(f"{out / 'results.jsonl'} holds no results; `compare.py evaluate` writes it")
    # encoders of other methods may lie in OUT as well
    named = {name for row in draws.values() for name in row}
    names = [name for name in order if name in named] + sorted(named - {*order})
    print_summary(draws, names)
    for key, methods in draws.items():
        print_figure(key, methods, names, base)
    if chart:
        means = {key: {n: seed_mean(m[n]) for n in names if n in m} for key, m in draws.items()}
        picture = methods_chart(means, {key: level_with_best(methods) for key, methods in draws.items()})
        with whole_file(chart) as part:
            part.write_bytes(picture)
    if table:
        rows = (row for key, methods in draws.items() for row in figure_rows(key, methods, names, base))
        write_rows(table, [CSV_COLUMNS, *rows])
