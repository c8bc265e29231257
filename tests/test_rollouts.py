"""The table: columns are checked, rows are taken whole, tables stack."""

import pytest
import torch

from surefoot.errors import InputError
from surefoot.rollouts import COLUMNS, MissingColumn, Rollouts, concatenate


def _table(n=4, t=5, offset=0):
    lengths = torch.tensor([2, 5, 3, 1])[:n]
    present = torch.arange(t) < lengths[:, None]
    return Rollouts(
        dict(
            tokens=torch.arange(n * t).view(n, t) + offset,
            mask=present,
            present=present,
            group=torch.tensor([0, 0, 1, 1])[:n],
            reward=torch.arange(n).float(),
            prompt_tokens=torch.ones(2, 3, dtype=torch.long),
            prompt_mask=torch.ones(2, 3, dtype=torch.bool),
        ),
        rewards={"accuracy": torch.arange(n).float()},
        notes={"completion": [f"c{i}" for i in range(n)]},
    )


def test_every_column_is_documented():
    for column in COLUMNS.values():
        assert column.meaning and column.source in {"rollout", "task", "method", "signal", "live"}
        assert column.kind in {"float", "int", "bool"} and set(column.axes.split()) <= set("nmtpvdk")


def test_unknown_misshapen_and_mistyped_columns_are_refused():
    table = _table()
    with pytest.raises(InputError, match="did you mean 'reward'"):
        table.having(rewrad=torch.zeros(4))
    with pytest.raises(InputError, match="3 along 'n', the table has 4"):
        table.having(truncated=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(InputError, match="expected float"):
        table.having(advantage=torch.zeros(4, 5, dtype=torch.long))
    with pytest.raises(InputError, match="expected axes"):
        table.having(advantage=torch.zeros(4))
    with pytest.raises(MissingColumn, match="'ref_logp'"):
        _ = table.ref_logp
    with pytest.raises(InputError, match="2 values for 4"):
        table.having(rewards={"style": torch.zeros(2)})


def test_rows_trim_to_the_longest_and_keep_rewards_and_notes_aligned():
    part = _table().rows([0, 2])
    assert len(part) == 2 and part.steps == 3 and part.tokens.tolist() == [[0, 1, 2], [10, 11, 12]]
    assert part.rewards["accuracy"].tolist() == [0, 2] and part.notes["completion"] == ["c0", "c2"]
    assert len(part.prompt_tokens) == 2, "the prompt table stays whole, so that `group` stays valid"
    assert len(_table().rows(torch.tensor([False] * 4))) == 0


def test_tables_stack_with_padding_and_new_group_numbers():
    a, b = _table(), _table(offset=100).rows([0, 2])
    both = concatenate([a, b])
    assert len(both) == 6 and both.steps == 5
    assert both.group.tolist() == [0, 0, 1, 1, 2, 3]
    assert both.tokens[4].tolist() == [100, 101, 102, 0, 0] and not both.present[4, 3:].any()
    assert len(both.prompt_tokens) == 4 and both.notes["completion"][-1] == "c2"
