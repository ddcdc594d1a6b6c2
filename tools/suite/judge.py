"""From rounds to a verdict.

A ratio is taken inside each round, so that a slow minute hits both sides; the median over rounds counts. A/A is the median distance
between ours and ours again in the same rounds: a ratio goal holds if the median ratio is within the goal plus that.
"""

import statistics

from .rows import OURS


def shown(value):
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def of(rounds, who, key):
    """One value a round, or none."""
    return [figures[who][key] for figures in rounds if who in figures and key in figures[who]]


def ours_of(figures, key):
    """Ours of one round: both runs where there were two."""
    values = [figures[who][key] for who in OURS if who in figures and key in figures[who]]
    return statistics.mean(values) if values else None


def median_cell(values):
    if not values:
        return "–"
    middle = shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))}–{shown(max(values))})"


def spread(rounds, key):
    """A/A: how far equal things are apart here, as a share."""
    pairs = [(figures[OURS[0]].get(key), figures[OURS[1]].get(key)) for figures in rounds if all(who in figures for who in OURS)]
    apart = [abs(a / b - 1) for a, b in pairs if a is not None and b]
    return statistics.median(apart) if apart else None


def ratio(rounds, key, who):
    pairs = [(ours_of(figures, key), figures.get(who, {}).get(key)) for figures in rounds]
    ratios = [ours / other for ours, other in pairs if ours is not None and other]
    return statistics.median(ratios) if ratios else None


def verdict(rounds, metric):
    """(what is asked, True / False / None where nothing can be said)"""
    goal, key = metric.goal, metric.key
    if not goal:
        return "", None
    ours = [value for value in (ours_of(figures, key) for figures in rounds) if value is not None]
    if not ours:
        return "", None
    middle = statistics.median(ours)
    match goal:
        case ("at most", limit):
            return f"≤ {shown(limit)}", middle <= limit
        case ("at least", limit):
            return f"≥ {shown(limit)}", middle >= limit
        case ("above", who, limit):
            other = of(rounds, who, key)
            return f"≤ {who} + {shown(limit)}", middle <= statistics.median(other) + limit if other else None
        case ("ratio", who, limit):
            found, apart = ratio(rounds, key, who), spread(rounds, key) or 0.0
            asked = f"{'≥' if metric.high else '≤'} {limit} × {who}"
            if found is None:
                return asked, None
            return asked, found >= limit - apart if metric.high else found <= limit + apart
    raise ValueError(goal)


def table(row, rounds):
    """Markdown: a line for each metric."""
    others = [name for name in [*row.contestants, *row.peers] if name not in OURS and any(name in figures for figures in rounds)]
    head = ["", *others, "ours", *(f"ours ÷ {name}" for name in others), "A/A", "goal", ""]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for metric in row.metrics:
        key = metric.key
        asked, holds = verdict(rounds, metric)
        apart = spread(rounds, key)
        ours = [value for value in (ours_of(figures, key) for figures in rounds) if value is not None]
        cells = [
            key,
            *(median_cell(of(rounds, name, key)) for name in others),
            median_cell(ours),
            *(shown(ratio(rounds, key, name)) for name in others),
            "" if apart is None else f"±{apart * 100:.0f} %",
            asked,
            {True: "holds", False: "missed", None: ""}[holds],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    named = {metric.key for metric in row.metrics} | {"generator core"}
    rest = [key for key in rounds[0].get("ours", {}) if key not in named]
    more = "; ".join(f"{key} {median_cell(of(rounds, 'ours', key))}" for key in rest)
    return "\n".join(lines) + (f"\n\n{more}" if more else "")


def notes(row, rounds, reports):
    """What a reader must know about the figures of a row."""
    found = []
    for name in [*row.contestants, *row.peers]:
        busy = of(rounds, name, "generator core")
        if busy and statistics.median(busy) >= 0.9:
            found.append(f"{name}: the generator used {statistics.median(busy) * 100:.0f} % of its core: the rate is a lower bound")
    strangers = [report["stranger"] for report in reports if report.get("stranger", 0) > 0.2]
    if strangers:
        found.append(f"in {len(strangers)} of {len(reports)} runs a stranger used more than 20 % of the server's core (up to {max(strangers) * 100:.0f} %)")
    return found
