import torch

from lit_detect.callbacks import results_table


def test_the_table_has_what_exists_and_no_more():
    metrics = {
        "val/map": torch.tensor(0.5),
        "val/map_50": torch.tensor(0.75),
        "val/ap/cat": torch.tensor(0.25),
        "test/map": torch.tensor(0.1),
    }
    table = results_table(metrics, "val")
    assert [list(column.cells) for column in table.columns] == [["AP", "AP50", "AP cat"], ["0.500", "0.750", "0.250"]]
