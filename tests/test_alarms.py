import math

from genrl.alarms import Alarm, Alarms, Leader

HIGH = Alarm("a", "a is {value}", above=1.0, rounds=3)


def test_an_alarm_needs_a_full_window_is_raised_once_and_again_after_a_pause():
    alarms = Alarms([HIGH])
    heard = [alarms.hear({"a": value}) for value in (2, 2, 2, 2, 0, 0, 0, 3, 3, 3)]
    assert [bool(words) for words in heard] == [False, False, True, False, False, False, False, False, True, False]
    assert heard[2] == ["a is 2"]


def test_low_values_missing_ones_and_other_metrics():
    alarms = Alarms([Alarm("a", "low: {value}", below=0.5, rounds=2), HIGH])
    assert alarms.hear({"b": 9.0}) == [] and alarms.hear({"a": None}) == [] and alarms.hear({"a": 0.1}) == []
    assert alarms.hear({"a": 0.2}) == ["low: 0.15"]


def test_a_replayed_history_raises_what_it_raised():
    """A resumed run hears the rounds before its checkpoint again and goes on as if it had never stopped."""
    values = [math.sin(i / 3) + 1 for i in range(60)]
    whole, resumed = Alarms([HIGH]), Alarms([HIGH])
    first = [whole.hear({"a": v}) for v in values]
    for v in values[:31]:
        resumed.hear({"a": v})
    assert [resumed.hear({"a": v}) for v in values[31:]] == first[31:] and any(first)


def test_a_change_of_leader_is_told_once_and_not_at_a_tie():
    leader = Leader()
    shares = lambda a: {"mix/share/a": a, "mix/share/b": 1 - a, "loss/actor": 3.0}  # noqa: E731
    assert leader.hear({"loss/actor": 1.0}) == []  # one reward has no shares
    assert [leader.hear(shares(a)) for a in (0.7, 0.6, 0.49, 0.51, 0.48)] == [[]] * 5
    said = [words for _ in range(12) for words in leader.hear(shares(0.1))]
    assert len(said) == 1 and said[0].startswith("b decides now") and "no longer a" in said[0]
