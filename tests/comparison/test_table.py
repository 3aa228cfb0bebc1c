"""From scores to statements, on made-up scores whose answer is known."""

import numpy as np
import pytest

from genrl.comparison import table
from genrl.types import Prompt

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(40, 4))


def compared(diversity=None, **scores):
    scores = {label: {"judge": values} for label, values in {"base": BASE, **scores}.items()}
    diversity = diversity or {label: {} for label in scores}
    return table.comparison(table.columns(scores, diversity), "base")


def row_of(rows, model, metric="judge"):
    (found,) = (row for row in rows if row["model"] == model and row["metric"] == metric)
    return found


def test_a_model_that_is_better_everywhere():
    row = row_of(compared(new=BASE + 0.5), "new")
    assert row["difference"] == pytest.approx(0.5) and row["win_rate"] == 1 and row["verdict"] == "better"
    assert row["mean"] - row["base_mean"] == pytest.approx(0.5) and row["prompts"] == 40


def test_a_model_that_is_worse():
    row = row_of(compared(new=BASE - 0.5 + 0.1 * RNG.normal(size=BASE.shape)), "new")
    assert row["verdict"] == "worse" and row["difference_ci95"][1] < 0 and row["win_rate"] < 0.1


def test_noise_is_called_noise_and_says_what_would_have_been_seen():
    row = row_of(compared(new=BASE + RNG.normal(size=BASE.shape)), "new")
    assert row["verdict"] == "no more than noise" and row["difference_ci95"][0] < 0 < row["difference_ci95"][1]
    assert 0.1 < row["minimum_detectable"] < 0.5


def test_the_base_has_no_difference():
    row = row_of(compared(), "base")
    assert "difference" not in row and row["mean"] == pytest.approx(BASE.mean())


def test_what_cannot_be_scored_is_left_out_of_both():
    new = BASE + 0.5
    new[:10] = np.nan
    row = row_of(compared(new=new), "new")
    assert row["prompts"] == 30 and row["difference"] == pytest.approx(0.5)
    assert row["base_mean"] == pytest.approx(BASE[10:].mean())


def test_nothing_is_said_of_a_single_prompt():
    new = np.full_like(BASE, np.nan)
    new[0] = 1
    rows = compared(new=new)
    assert set(row_of(rows, "new")) == {"metric", "model", "prompts"}
    assert table.words({"base": "base", "comparison": rows}) == ["new cannot be compared by judge: too few prompts have scores of both, 1."]


def test_many_metrics_are_corrected_for_their_number():
    rng = np.random.default_rng(1)
    scores = {"base": {}, "new": {}}
    for number in range(40):
        base = rng.normal(size=(30, 1))
        scores["base"][f"m{number}"] = base
        scores["new"][f"m{number}"] = base + rng.normal(size=base.shape)
    rows = [row for row in table.comparison(table.columns(scores, {"base": {}, "new": {}}), "base") if row["model"] == "new"]
    assert min(row["p"] for row in rows) < 0.05
    assert all(row["p_adjusted"] >= row["p"] and row["verdict"] == "no more than noise" for row in rows)


def test_diversity_is_a_metric_of_its_own_name():
    diversity = {"base": {"layout": np.full(40, 0.2)}, "new": {"layout": np.full(40, 0.1)}}
    row = row_of(compared(diversity, new=BASE), "new", "diversity: layout")
    assert row["verdict"] == "worse" and row["difference"] == pytest.approx(-0.1)
    *_, said = table.words({"base": "base", "comparison": compared(diversity, new=BASE)})
    assert said == "new draws a prompt with less variety than base, beyond noise: layout 0.2 -> 0.1."
    same = compared({"base": {"layout": np.full(40, 0.2)}, "new": {"layout": np.full(40, 0.2)}}, new=BASE)
    assert not any("variety" in line for line in table.words({"base": "base", "comparison": same}))


def test_categories_are_compared_apart():
    prompts = [Prompt("x", "good" if place < 20 else "bad") for place in range(40)]
    new = BASE + np.where(np.arange(40) < 20, 1.0, -1.0)[:, None]
    columns = table.columns({"base": {"judge": BASE}, "new": {"judge": new}}, {"base": {}, "new": {}})
    rows = table.categories(columns, prompts, "base")
    found = {(row["category"], row["model"]): row for row in rows}
    assert found["good", "new"]["difference"] == pytest.approx(1) and found["bad", "new"]["difference"] == pytest.approx(-1)
    assert found["good", "new"]["prompts"] == 20 and "difference" not in found["good", "base"]
    assert table.categories(columns, [Prompt("x")] * 40, "base") == []


def test_a_category_of_two_prompts_gets_no_interval():
    prompts = [Prompt("x", "few" if place < 2 else "many") for place in range(40)]
    columns = table.columns({"base": {"judge": BASE}, "new": {"judge": BASE + 1}}, {"base": {}, "new": {}})
    found = {row["category"]: row for row in table.categories(columns, prompts, "base") if row["model"] == "new"}
    assert found["few"]["difference_ci95"] is None and found["many"]["difference_ci95"] is not None


def test_a_ranking_needs_three_and_is_sorted():
    columns = table.columns(
        {"base": {"judge": BASE}, "up": {"judge": BASE + 1}, "down": {"judge": BASE - 1}}, {label: {} for label in ("base", "up", "down")}
    )
    ranked = table.rankings(columns, "base", ["judge"])["judge"]
    assert [row["model"] for row in ranked] == ["up", "base", "down"]
    assert ranked[1]["strength"] == 0 and ranked[0]["ci95"][0] > 0 > ranked[2]["ci95"][1]
    assert table.rankings({label: columns[label] for label in ("base", "up")}, "base", ["judge"]) == {}


def model(label, steps, source="one"):
    return {"label": label, "source": source, "settings": {"steps": steps}, "seconds_per_image": steps / 10}


def test_a_curve_is_drawn_over_steps_of_one_source():
    models = [model("a@8", 8), model("a@2", 2), model("b", 4, "two"), {"label": "p", "source": "x", "settings": None}]
    rows = [{"model": one["label"], "metric": "judge", "mean": 1.0, "ci95": [0, 2], "prompts": 3} for one in models]
    found = table.curve(models, rows)
    assert [(point["source"], point["steps"], point["seconds_per_image"]) for point in found] == [("a", 2, 0.2), ("a", 8, 0.8)]


def test_words_say_why_an_interval_without_zero_is_not_enough():
    row = {"model": "new", "metric": "judge", "difference": 0.3, "difference_ci95": [0.04, 0.6], "prompts": 6, "win_rate": 1.0}
    row |= {"p": 0.03, "p_adjusted": 0.16, "verdict": "no more than noise", "minimum_detectable": 0.4}
    (said,) = table.words({"base": "base", "comparison": [row]})
    assert "no more than noise" in said and "corrected p 0.16" in said


def test_words_blame_prompts_and_not_metrics_where_prompts_are_too_few():
    """Four prompts, each better by as much: p is 2 / 2^4 whatever is measured."""
    (said,) = table.words({"base": "base", "comparison": compared_few(4)})
    assert "do not agree (p 0.12): too few prompts" in said and "metrics" not in said


def compared_few(prompts):
    scores = {"base": {"judge": BASE[:prompts]}, "new": {"judge": BASE[:prompts] + np.linspace(1, 1.1, prompts)[:, None]}}
    return table.comparison(table.columns(scores, {"base": {}, "new": {}}), "base")


def test_words_say_who_is_better_and_whether_it_is_more_than_noise():
    rows = compared(better=BASE + 0.5, same=BASE + RNG.normal(size=BASE.shape))
    said = table.words({"base": "base", "comparison": rows})
    assert said[0].startswith("better is better than base by judge: +0.5 [+0.5, +0.5] over 40 prompts")
    assert "differs by no more than noise" in said[1] and "would have been seen" in said[1] and len(said) == 2


def test_words_promise_nothing_of_what_does_not_vary():
    """The same pictures twice: half of the prompts each, no difference, and nothing known of what would have been seen."""
    rows = compared(same=BASE)
    row = row_of(rows, "same")
    assert (row["win_rate"], row["verdict"], row["p"], row["minimum_detectable"]) == (0.5, "no more than noise", 1, 0)
    (said,) = table.words({"base": "base", "comparison": rows})
    assert said.endswith("+0 [+0, +0] over 40 prompts, higher for 50% of them.")


def test_a_reward_called_diversity_is_a_reward():
    columns = table.columns({label: {"diversity": BASE} for label in ("base", "new")}, {"base": {}, "new": {}})
    assert len(table.words({"base": "base", "comparison": table.comparison(columns, "base")})) == 1
