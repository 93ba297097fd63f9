"""How many seeds and images show a lead, from the variance of pilot runs.

    python -m experiments.runs.power --a dpo_dfusion --b dpo_naive --rounds 4 [--runs few]

A lead is measured on pairs of runs, one pair a seed, on images of the same noise. Its variance is
seeds' / S + images' / (S N) for S seeds of N images each; both parts are estimated from pilot runs
(of at least two seeds), and the power is that of a two-sided t test at 5 % over S seeds. Results
are in results/<preset>/power.json.
"""

import argparse
import json

import numpy as np
from scipy import stats

from dfusion.errors import UserError, ends_in_one_line
from dfusion.storage.files import write_json
from experiments.runs.alignment import RESULTS
from experiments.runs.alignment_plot import EACH, Run, at, load

SEEDS, IMAGES = (3, 4, 6, 8, 10, 15, 20, 40), (96, 256, 512, 1024)
LEVEL, ENOUGH = 0.05, 0.9


def variances(leads: np.ndarray) -> tuple[float, float]:
    """Variance over seeds, and over images of one seed, of leads (S, N); at least 0."""
    images = float(leads.var(axis=1, ddof=1).mean())
    seeds = float(leads.mean(axis=1).var(ddof=1)) - images / leads.shape[1]
    return max(0.0, seeds), images


def power(lead: float, seeds: int, images: int, over_seeds: float, over_images: float) -> float:
    """Probability that a t test over `seeds` seeds of `images` images each tells `lead` from 0."""
    spread = (over_seeds / seeds + over_images / (seeds * images)) ** 0.5
    limit = stats.t.ppf(1 - LEVEL / 2, seeds - 1)
    away = stats.nct(seeds - 1, lead / spread)
    return float(away.sf(limit) + away.cdf(-limit))


def leads(a: list[Run], b: list[Run], key: str, rounds: int) -> np.ndarray:
    """(S, N) of run a over run b, image by image, of the seeds that both have."""
    by_seed = [
        {run["settings"]["seed"]: run for run in runs if rounds in at(run)} for runs in (a, b)
    ]
    shared = sorted(set(by_seed[0]) & set(by_seed[1]))
    rows = [[np.asarray(at(runs[seed])[rounds][key]) for runs in by_seed] for seed in shared]
    return np.array([one - other for one, other in rows], float)


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="testbed")
    parser.add_argument("--a", default="dpo_dfusion", help="runs that may lead")
    parser.add_argument("--b", default="dpo_naive", help="runs that they are compared with")
    parser.add_argument("--runs", default="alignment", help="folder of the runs, as for few")
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument(
        "--seeds", nargs=2, type=int, metavar=("FIRST", "LAST"), help="default: all there are"
    )
    parser.add_argument(
        "--rounds", type=int, required=True, help="of training, before the comparison"
    )
    parser.add_argument("--measure", default="judge", choices=list(EACH))
    parser.add_argument("--lead", type=float, default=0.05)
    args = parser.parse_args()
    runs = load(RESULTS / args.preset / args.runs, args.seeds)[args.template]
    found = leads(runs.get(args.a, []), runs.get(args.b, []), EACH[args.measure], args.rounds)
    if len(found) < 2:
        raise UserError(
            f"--a {args.a} --b {args.b}: {len(found)} seeds have both after {args.rounds} rounds; "
            "two or more are needed"
        )
    over_seeds, over_images = variances(found)
    table = {
        str(s): {str(n): round(power(args.lead, s, n, over_seeds, over_images), 3) for n in IMAGES}
        for s in SEEDS
    }
    enough = [(s, n) for s in SEEDS for n in IMAGES if table[str(s)][str(n)] >= ENOUGH]
    figures = {
        "lead": args.lead,
        "pilot leads": [round(float(v), 4) for v in found.mean(1)],
        "standard deviation over seeds": round(over_seeds**0.5, 4),
        "standard deviation over images": round(over_images**0.5, 4),
        "power by seeds and images": table,
        "enough": enough[0] if enough else None,
    }
    out = RESULTS / args.preset / "power.json"
    saved = json.loads(out.read_text()) if out.exists() else {}
    place = f"template {args.template}, {args.rounds} rounds, {len(found)} seeds"
    name = f"{args.runs}: {args.a} - {args.b}, {place}, {args.measure}"
    write_json(out, {**saved, name: figures})
    print(json.dumps(figures, indent=1))
    print(f"Figures are in {out}")


if __name__ == "__main__":
    main()
