"""Two images at a time: strengths, what is asked, and scores handed in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize

from dfusion.method.pairing import adopted
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import write_png
from dfusion.view import ratings
from dfusion.view.strengths import SPREAD, Outcome, between, joined, strengths
from tests.viewing import ask_people, client_of, copy_of

WHERE = {"exp": "exp", "round": "epoch0", "kind": "images"}


def test_strengths_are_the_most_likely_ones() -> None:
    rng = np.random.default_rng(0)
    outcomes = [
        Outcome(*map(int, rng.choice(5, 2, replace=False)), float(rng.choice([0, 0.5, 1])))
        for _ in range(40)
    ]

    def unlikely(s: np.ndarray) -> float:
        odds = (
            share * np.logaddexp(0, s[j] - s[i]) + (1 - share) * np.logaddexp(0, s[i] - s[j])
            for i, j, share in outcomes
        )
        return float(sum(odds) + (s**2).sum() / (2 * SPREAD**2))

    wanted = optimize.minimize(unlikely, np.zeros(5), tol=1e-12).x
    assert strengths(5, outcomes) == pytest.approx(wanted, abs=1e-4)


def test_strengths_of_one_who_always_wins_are_finite_and_ordered() -> None:
    found = strengths(3, [Outcome(0, 1, 1.0)] * 50 + [Outcome(1, 2, 1.0)] * 50)
    assert np.isfinite(found).all() and found[0] > found[1] > found[2]
    assert strengths(2, [Outcome(0, 1, 0.5)]) == [0, 0]


@pytest.mark.parametrize(
    ("over_base", "over_reference", "score"),
    [
        (0, 0, 1.0),  # worse than both
        (0.25, 0, 1.5),
        (0.5, 0, 2.0),  # as good as the base
        (1, 0, 3.0),
        (0.75, 0.25, 3.0),
        (0.5, 0.5, 4.0),  # as good as the reference
        (0, 0.5, 4.0),
        (1, 1, 5.0),
    ],
)
def test_a_target_lies_where_people_put_it(
    over_base: float, over_reference: float, score: float
) -> None:
    assert between(2.0, 4.0, over_base, over_reference) == score


@pytest.mark.parametrize("share", [0, 1 / 3, 0.5, 2 / 3, 1])
@pytest.mark.parametrize(("base", "reference"), [(4 / 3, 10 / 3), (3.0, 3.0), (-0.7, 0.1)])
def test_adopted_is_what_people_find_as_good_as_the_reference(
    base: float, reference: float, share: float
) -> None:
    for over_base in (0, 1 / 3, 0.5, 1):
        target = between(base, reference, over_base, share)
        assert adopted(target, base, reference, 1.0) == (share >= 0.5)


def test_joined_needs_a_way_between_all() -> None:
    assert joined(1, [])
    assert joined(3, [Outcome(2, 0, 1.0), Outcome(0, 1, 0.0)])
    assert not joined(4, [Outcome(0, 1, 1.0), Outcome(2, 3, 1.0)])


@pytest.fixture
def people(tmp_path: Path, view_data: Path) -> Path:
    """A run whose eight samples are there and wait for people."""
    data = copy_of(view_data, tmp_path)
    ask_people(data / "exp")
    return data


def tasks(client: Any, rater: str, kind: str = "images") -> list[dict[str, Any]]:
    params = {**WHERE, "kind": kind, "rater": rater}
    return client.get("/api/two/task", params=params).json()["items"]


def answer(client: Any, rater: str, number: int, choice: object, kind: str = "images") -> int:
    body = {**WHERE, "kind": kind, "rater": rater, "number": number, "choice": choice}
    return client.post("/api/two/answer", json=body).status_code


def preferring(client: Any, rater: str, worth: dict[tuple[str, int], float], kind: str) -> None:
    """Answer everything as somebody to whom images are worth this much."""
    for number, item in enumerate(tasks(client, rater, kind)):
        left, right = (worth[shown["kind"], shown["i"]] for shown in item["images"])
        choice = -1 if left == right else int(right > left)
        assert answer(client, rater, number, choice, kind) == 200


def test_every_image_meets_the_others_of_its_prompt(people: Path) -> None:
    client = client_of(people)
    texts = Experiment(people / "exp").round(0).texts_to_score("images")
    for rater in ("Ada", "Bob"):
        asked = tasks(client, rater)
        pairs = [frozenset(shown["i"] for shown in item["images"]) for item in asked]
        assert len(set(pairs)) == len(pairs) == 12  # all six pairs of four images, twice
        for item, pair in zip(asked, pairs, strict=True):
            assert len(pair) == 2 and {texts[i] for i in pair} == {item["prompt"]}
        assert tasks(client, rater) == asked
    assert tasks(client, "Ada") != tasks(client, "Bob")


def test_scores_order_images_as_people_do(people: Path) -> None:
    client, round_ = client_of(people), Experiment(people / "exp").round(0)
    early = client.post("/api/two/hand-in", json=WHERE)
    assert early.status_code == 400 and "needs more comparisons" in early.json()["error"]
    worth = {("images", i): float(i * 5 % 8) for i in range(8)}
    preferring(client, "Ada", worth, "images")
    assert [i["mine"] for i in tasks(client, "Ada")].count(None) == 0
    assert all(i["mine"] is None for i in tasks(client, "Bob"))
    assert client.post("/api/two/hand-in", json=WHERE).json() == {"scores": 8}
    scores, texts = round_.scores("images", "human"), round_.texts_to_score("images")
    for text in set(texts):
        members = [i for i in range(8) if texts[i] == text]
        by_score = sorted(members, key=lambda i: scores[i])
        assert by_score == sorted(members, key=lambda i: worth["images", i])
        assert sum(scores[i] for i in members) == pytest.approx(0, abs=1e-9)
    again = client.post("/api/two/hand-in", json=WHERE)
    assert again.status_code == 400 and "handed in already" in again.json()["error"]


def test_targets_are_adopted_as_people_judge_them(people: Path) -> None:
    """Liked better than both; as much as the reference; as much as the base; least."""
    client, round_ = client_of(people), Experiment(people / "exp").round(0)
    pairs = round_.pairs() or ()
    assert len(pairs) == 4
    known = dict.fromkeys(range(8), 0.0)
    known |= {p.reference: 3.0 for p in pairs} | {p.base: 1.0 for p in pairs}
    round_.write_scores("images", "human", known)
    ratings.append(
        people / "ratings/handed.jsonl", {"name": "exp", "round": "epoch0", "way": "two"}
    )
    liked, wanted = (4.0, 3.0, 1.0, 0.0), (4.0, 3.0, 1.0, 0.0)
    worth = {("images", i): score for i, score in known.items()}
    worth |= {("target_images", p): liked[p] for p in range(4)}
    preferring(client, "Ada", worth, "target_images")
    body = {**WHERE, "kind": "target_images"}
    (job,) = client.get("/api/human").json()
    assert (job["kind"], job["ways"]) == ("target_images", ["two"])
    for p in range(4):
        client.post("/api/human/rate", json={**body, "index": p, "rater": "Ada", "score": 5})
    other = client.post("/api/human/hand-in", json=body)
    assert other.status_code == 400 and "in the same way as its samples" in other.json()["error"]
    assert client.post("/api/two/hand-in", json=body).json() == {"scores": 4}
    assert round_.scores("target_images", "human") == dict(enumerate(wanted))


def test_targets_wait_for_the_scores_of_their_samples(people: Path) -> None:
    client, body = client_of(people), {**WHERE, "kind": "target_images"}
    worth = {("images", i): 1.0 for i in range(8)} | {("target_images", p): 2.0 for p in range(4)}
    preferring(client, "Ada", worth, "target_images")
    refused = client.post("/api/two/hand-in", json=body)
    assert refused.status_code == 400 and "samples have no scores" in refused.json()["error"]


ODD = [
    '{"rater": "Ada"}',
    "[1, 2]",
    "[" * 3000,
    '{"rater": ["Ada"], "images": ID, "better": null}',
    '{"rater": "Eve", "images": ID, "better": true}',
    '{"rater": "Eve", "images": ID, "better": ["images", 7]}',
    '{"rater": "Eve", "images": [["images", 0, "x"]], "better": null}',
    '{"rater": "Eve", "images": [["images", 0, "x"], ["images", 0, "x"]], "better": null}',
    '{"rater": "Eve", "images": [["images", "0", "x"], ["images", 1, "x"]], "better": null}',
    '{"rater": "Eve", "images": [["/etc", 0, "x"], ["images", 1, "x"]], "better": null}',
    '{"rater": "Eve", "images": [["images", -1, "x"], ["images", 1]], "better": null}',
]


def test_odd_lines_are_passed_over(people: Path) -> None:
    client = client_of(people)
    preferring(client, "Ada", {("images", i): float(i) for i in range(8)}, "images")
    answered = [item["mine"] for item in tasks(client, "Ada")]
    path = people / "ratings/two.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    where = '"name": "exp", "round": "epoch0", "kind": "images"'
    lines = [line.replace("ID", json.dumps(first["images"])) for line in ODD]
    lines = [line.replace("{", "{" + where + ", ", 1) for line in lines]
    path.write_text("\n".join([*lines, path.read_text()]))
    assert [item["mine"] for item in tasks(client, "Ada")] == answered
    assert all(item["mine"] is None for item in tasks(client, "Eve"))
    assert client.post("/api/two/hand-in", json=WHERE).json() == {"scores": 8}


def test_odd_lines_of_single_ratings_are_passed_over(people: Path) -> None:
    client = client_of(people)
    for i in range(8):
        client.post("/api/human/rate", json={**WHERE, "index": i, "rater": "Ada", "score": 2})
    path = people / "ratings/human.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    odd = [{"score": 900}, {"score": float("nan")}, {"score": True}, {"index": "0"}, {"rater": 1}]
    bad = [json.dumps({**row, **change}) for change in odd]
    bad += [json.dumps({k: v for k, v in row.items() if k != name}) for name in ("image", "score")]
    path.write_text("\n".join([path.read_text(), *bad, "[" * 3000]))
    assert client.post("/api/human/hand-in", json=WHERE).json() == {"scores": 8}
    scores = Experiment(people / "exp").round(0).scores("images", "human")
    assert set(scores.values()) == {2.0}


def test_answers_are_of_these_very_images(people: Path) -> None:
    client, round_ = client_of(people), Experiment(people / "exp").round(0)
    preferring(client, "Ada", {("images", i): float(i) for i in range(8)}, "images")
    write_png(round_.image("images", 0), np.zeros((8, 8, 3), np.uint8))
    open_again = [item for item in tasks(client, "Ada") if item["mine"] is None]
    assert len(open_again) == 3
    assert all(0 in [shown["i"] for shown in item["images"]] for item in open_again)
    assert client.post("/api/two/hand-in", json=WHERE).status_code == 400


def test_nobody_compares_before_all_images_are_there(people: Path) -> None:
    """Who meets whom would change under the raters' hands."""
    client = client_of(people)
    preferring(client, "Ada", {("images", i): float(i) for i in range(8)}, "images")
    Experiment(people / "exp").round(0).image("images", 7).unlink()
    early = client.get("/api/two/task", params={**WHERE, "rater": "Ada"})
    assert early.status_code == 404 and "still being made" in early.json()["error"]
    assert answer(client, "Ada", 0, 0) == 404
    assert client.post("/api/two/hand-in", json=WHERE).status_code == 400


def test_odd_answers_are_refused(people: Path) -> None:
    client = client_of(people)
    for number, choice in ((12, 0), (-1, 0), (0, 2), (0, -2), (0, True), (0, "1"), (0, None)):
        assert answer(client, "Ada", number, choice) == 400
    assert answer(client, "", 0, 0) == 400
    as_json = {"content-type": "application/json"}
    nested = client.post("/api/two/answer", content="[" * 50000, headers=as_json)
    assert nested.status_code == 400
    assert not (people / "ratings").exists()
    compared = {**WHERE, "round": "compare/epoch0", "rater": "Ada"}
    assert client.get("/api/two/task", params=compared).status_code == 404
