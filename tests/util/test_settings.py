"""Settings: what is refused, where, and in which words."""

from fractions import Fraction
from typing import Annotated, Literal

import pytest

from util.errors import UserError
from util.settings import BelowOne, Count, Flag, Number, Positive, Settings, Share, keywords, read, whole


class Stage(Settings):
    lr: Positive = 1.0
    count: Count = 3
    window: Count | None = None
    eps: Literal["noise"] | Positive = 1e-3
    share: Share = Fraction(1, 3)


class Group(Settings):
    stage: Stage = Stage()
    final: Flag | Stage = True
    refine: Stage | None = None
    span: tuple[Number, Number] = (0.0, 1.0)
    stages: tuple[Stage, ...] = ()
    momentum: BelowOne = 0.0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stage": {"lr": 0}}, "g.stage.lr: expected a number above 0, got 0"),
        ({"stage": {"lr": "nan"}}, "g.stage.lr: expected a number above 0, got 'nan'"),
        ({"stage": {"lr": True}}, "g.stage.lr: expected a number above 0, got True"),
        ({"stage": {"eps": "nois"}}, "g.stage.eps: expected 'noise', or a number above 0, got 'nois'"),
        ({"stage": {"share": "4/3"}}, "g.stage.share: expected a share from 0 to 1, such as 0.25 or 1/3, got '4/3'"),
        ({"stage": 5}, "g.stage: expected a mapping of settings, got 5"),
        ({"final": 3}, "g.final: expected true or false, or a mapping of settings, got 3"),
        ({"final": {"lr": -1}}, "g.final.lr: expected a number above 0, got -1"),
        ({"refine": {"count": 1.5}}, "g.refine.count: expected a whole number, 1 or more, got 1.5"),
        ({"span": [1]}, "g.span.1: expected one entry more, got [1]"),
        ({"stages": [{}, {"count": 0}]}, "g.stages.1.count: expected a whole number, 1 or more, got 0"),
        ({"momentum": 1}, "g.momentum: expected a number from 0 to below 1, got 1"),
    ],
)
def test_a_mistake_is_told_by_its_place_in_a_line(values, told):
    with pytest.raises(UserError) as caught:
        read(Group, values, "g")
    assert str(caught.value) == told


def test_an_unknown_key_is_told_with_the_nearest_known():
    with pytest.raises(UserError, match="unknown setting of g.final 'lrr': did you mean 'lr'"):
        read(Group, {"final": {"lrr": 1}}, "g")
    with pytest.raises(UserError, match="unknown setting of g.stages.0 'cuont': did you mean 'count'"):
        read(Group, {"stages": [{"cuont": 1}]}, "g")


def test_each_mistake_has_a_line():
    with pytest.raises(UserError) as caught:
        read(Group, {"stage": {"lr": 0, "count": 0}, "nothing": 1}, "g")
    assert len(str(caught.value).splitlines()) == 3


def test_settings_survive_being_written_as_plain_values():
    group = read(Group, {"stage": {"lr": "1e-6", "share": "1/3"}, "refine": {}, "final": {"window": 2}})
    assert group.stage.lr == 1e-6
    assert group.stage.share == Fraction(1, 3)
    assert read(Group, group.to_plain()) == group


def test_a_signature_is_a_group_of_settings():
    def operator(size: Annotated[int, whole(1, 99, odd=True)], sigma: Positive = 1.0):
        pass

    assert keywords(operator, {"size": 3.0}, "operator 'mine'") == {"size": 3}
    for values, told in (
        ({}, "operator 'mine' needs size"),
        ({"size": 4}, "an odd number from 1 to 99, got 4"),
        ({"size": 3, "sigm": 1}, "did you mean 'sigma'"),
    ):
        with pytest.raises(UserError, match=told):
            keywords(operator, values, "operator 'mine'")
