import torch

from lit_detect.callbacks import coco_results, results_table


def test_results_keep_the_data_sets_own_category_ids():
    found = {"boxes": torch.tensor([[1.0, 2, 11, 22]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.25])}
    assert coco_results(found, 42, "a.jpg", ["cat", "dog", "horse"], [3, 7, 90]) == [
        {"image_id": 42, "file_name": "a.jpg", "category_id": 90, "category_name": "horse", "bbox": [1, 2, 10, 20], "score": 0.25}
    ]


def test_results_are_what_pycocotools_reads(tmp_path, coco_files):
    import json

    from pycocotools.coco import COCO

    found = {"boxes": torch.tensor([[10.0, 10, 30, 40]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(coco_results(found, 7, "b.jpg", ["cat", "dog", "horse"], [3, 7, 90])))
    loaded = COCO(str(coco_files[1])).loadRes(str(path))
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in loaded.anns.values()] == [(7, 90, [10, 10, 20, 30])]


def test_the_table_has_what_exists_and_no_more():
    metrics = {
        "val/map": torch.tensor(0.5),
        "val/map_50": torch.tensor(0.75),
        "val/ap/cat": torch.tensor(0.25),
        "test/map": torch.tensor(0.1),
    }
    table = results_table(metrics, "val")
    assert [list(column.cells) for column in table.columns] == [["AP", "AP50", "AP cat"], ["0.500", "0.750", "0.250"]]
