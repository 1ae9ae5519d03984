"""Parameters and multiply-accumulates of detectors and segmenters by the size of the image."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from vheatir.backbone.analysis.cost import count_macs, count_parameters
from vheatir.backbone.models.heat_pyramid import HeatPyramid


class WholeDetector(nn.Module):
    """All that a detector computes for one image, with as many proposals and detections as it allows.

    Boxes that overlap are not removed, so that it can be counted without computing anything.
    """

    detector: Any  # torchvision leaves the types of its parts open
    in_chans: int

    def __init__(self, detector: FasterRCNN):
        super().__init__()
        self.detector = detector
        self.in_chans = self.detector.backbone.in_chans

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = self.detector.roi_heads
        channels = self.detector.backbone.out_channels
        maps = self.detector.backbone(x)
        self.detector.rpn.head(list(maps.values()))
        boxes = x.new_empty(self.detector.rpn.post_nms_top_n(), channels, *parts.box_roi_pool.output_size)
        outputs = list(parts.box_predictor(parts.box_head(boxes)))
        if parts.has_mask():
            masks = x.new_empty(parts.detections_per_img, channels, *parts.mask_roi_pool.output_size)
            outputs.append(parts.mask_predictor(parts.mask_head(masks)))
        return outputs


def folded_for(model: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    """A copy without values whose heat layers keep their decay for images of that size; None where there are none."""
    copied = copy.deepcopy(model).to("meta")
    bodies = [one for one in copied.modules() if isinstance(one, HeatPyramid) and one.heat_layers()]
    for body in bodies:
        body.resize_embeddings(size)
        body.fold()
    return copied if bodies else None


def cost_at(model: nn.Module, size: tuple[int, int]) -> dict[str, dict]:
    """Parameters and multiply-accumulates for one image, of the form for training and of the folded one, "merged".

    Args:
        model: a segmenter or a detector.
        size: height and width of the image, after resizing; a detector pads them to multiples of 32, and its cost is
            that of what it computes.
    """
    if isinstance(model, FasterRCNN):
        resizing: Any = model.transform
        step: int = resizing.size_divisible
        size = (-(-size[0] // step) * step, -(-size[1] // step) * step)
    forms = {"training": model, "merged": folded_for(model, size)}
    report = {}
    for form, network in forms.items():
        if network is not None:
            whole = WholeDetector(network) if isinstance(network, FasterRCNN) else network
            with torch.no_grad():
                report[form] = {"parameters": count_parameters(network), "macs": count_macs(whole, size)}
    return report
