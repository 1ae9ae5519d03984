"""COCO's average precision of boxes and masks, computed by pycocotools."""

import contextlib
import io
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

# What COCOeval.summarize finds, in its order.
_FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_FIGURES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
_KINDS: dict[str, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}


class _Evaluation(COCOeval):
    """COCO's evaluation, in which `difficult` objects are ignored as crowds are, but overlap as single objects do.

    In a crowd every detection that lies inside is one of it; in a difficult object it may well be a false one.
    """

    _gts: dict[tuple[int, int], list[dict]]  # made by pycocotools, which states no types

    def computeIoU(self, imgId: int, catId: int) -> Any:
        difficult = [one for one in self._gts[imgId, catId] if one.get("difficult")]
        for one in difficult:
            one["iscrowd"] = 0
        overlaps = super().computeIoU(imgId, catId)
        for one in difficult:
            one["iscrowd"] = 1
        return overlaps


def as_results(output: dict[str, Tensor], number: int) -> list[dict]:
    """COCO's result entries of one image's detections.

    Args:
        output: `boxes` (N, 4) x0, y0, x1, y1, `labels` (N), `scores` (N), and `masks` (N, 1, H, W) in [0, 1] if any.
        number: of the image.
    """
    boxes = output["boxes"].cpu().numpy().astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    labels = output["labels"].tolist()
    scores = output["scores"].tolist()
    results = [
        {"image_id": number, "category_id": label, "bbox": box.tolist(), "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    if "masks" in output:
        for result, mask in zip(results, output["masks"][:, 0] > 0.5, strict=True):
            coded = rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
            result["segmentation"] = {"size": coded["size"], "counts": coded["counts"].decode("ascii")}
    return results


def average_precision(truth: dict, results: list[dict], masks: bool) -> dict[str, float]:
    """COCO's metrics in percent, such as `box_ap`, `box_ap50`, `mask_ap`; sizes that do not occur have none.

    AP is the mean over the overlaps 0.50, 0.55, ..., 0.95, the classes and 101 recalls, of at most 100 detections of
    each image; perfect detections have 100.

    Args:
        truth: a table in COCO's format; objects that have `iscrowd` and `difficult` are VOC's.
        results: entries as `as_results` makes them.
        masks: score masks too.
    """
    kinds = ("box", "mask") if masks else ("box",)
    if not results:  # pycocotools takes no empty list
        return {f"{kind}_{name}": 0.0 for kind in kinds for name in _FIGURES[:3]}
    metrics = {}
    with contextlib.redirect_stdout(io.StringIO()):
        known: Any = COCO()
        known.dataset = truth
        known.createIndex()
        for kind in kinds:
            # loadRes takes areas and boxes from masks where it finds any
            entries = [{k: v for k, v in one.items() if kind == "mask" or k != "segmentation"} for one in results]
            if kind == "mask":
                entries = [{k: v for k, v in one.items() if k != "bbox"} for one in entries]
            evaluation = _Evaluation(known, known.loadRes(entries), _KINDS[kind])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats = zip(_FIGURES, evaluation.stats, strict=True)
            metrics |= {f"{kind}_{name}": 100 * float(value) for name, value in stats if value >= 0}
    return metrics
