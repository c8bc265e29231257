"""Which steps train: bounds on a column, the highest share, conjunction and disjunction."""

import torch

from surefoot.objective import selection as S
from surefoot.rollouts import Rollouts

TABLE = Rollouts(
    {
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(),
        "old_entropy": torch.tensor([[0.1, 0.5, 0.9], [0.5, 0.2, 9.0]]),
        "age": torch.tensor([0, 3]),
        "truncated": torch.tensor([False, True]),
    }
)


def test_bounds_on_steps_and_on_trajectories():
    assert S.Where("old_entropy", low=0.5)(TABLE).tolist() == [[False, True, True], [True, False, False]]
    assert S.Where("old_entropy", 0.2, 0.5)(TABLE).tolist() == [[False, True, False], [True, True, False]]
    assert S.Where("age", high=1)(TABLE).tolist() == [[True] * 3, [False] * 3]
    assert S.Where("age").reads == ("mask", "age")


def test_the_highest_share_is_of_the_steps_that_train():
    assert S.Top(share=0.2)(TABLE).tolist() == [[False, False, True], [False, False, False]]
    assert S.Top(share=0.4)(TABLE).sum() == 3, "ties with the last one chosen train too"
    assert S.Top(share=1.0)(TABLE).equal(TABLE.mask)
    nothing = TABLE.having(mask=torch.zeros_like(TABLE.mask))
    assert not S.Top()(nothing).any()


def test_all_and_any():
    high, whole = S.Where("old_entropy", low=0.5), S.NotTruncated()
    assert S.All((high, whole))(TABLE).tolist() == [[False, True, True], [False] * 3]
    assert S.AnyOf((high, whole))(TABLE).tolist() == [[True] * 3, [True, False, False]]
    assert S.All()(TABLE).equal(TABLE.mask) and not S.AnyOf()(TABLE).any()
    assert set(S.AnyOf((high, whole)).reads) == {"mask", "old_entropy", "truncated"}
