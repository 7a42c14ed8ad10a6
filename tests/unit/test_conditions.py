from hxd.conditions import TABLE, Condition, Declared, Severity, visible


def test_a_condition_whose_cause_is_raised_for_the_same_subject_is_not_shown() -> None:
    raised = [
        Condition("replica-failed", "a", "", 0.0),
        Condition("model-unavailable", "a", "", 1.0),
        Condition("replica-failed", "b", "", 2.0),
    ]
    shown = [(condition.code, condition.subject) for condition in visible(raised, 10.0)]
    assert shown == [("model-unavailable", "a"), ("replica-failed", "b")]


def test_a_condition_is_shown_only_once_it_has_lasted() -> None:
    table = {"slow": Declared("slow", "Slow", Severity.WARNING, visible_after=5.0)}
    raised = [Condition("slow", "", "", 100.0)]
    assert visible(raised, 104.9, table) == []
    assert visible(raised, 105.0, table) == raised


def test_every_cause_in_the_table_exists() -> None:
    assert {cause for row in TABLE.values() for cause in row.depends_on} <= TABLE.keys()
