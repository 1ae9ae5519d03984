"""Faster and Mask R-CNN of torchvision with a feature pyramid on any backbone."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vheatir.backbone.detection.recipe import Detector
from vheatir.backbone.models.feature_maps import MEAN, STD

_RATIOS = (0.5, 1.0, 2.0)


class FeaturePyramid(nn.Module):
    """A backbone's four maps through a feature pyramid, and the last one pooled: maps at 1/4 to 1/64 by name."""

    def __init__(self, body: nn.Module, channels: int):
        super().__init__()
        self.body = body
        self.out_channels = channels
        self.in_chans = body.in_chans
        self.fpn = FeaturePyramidNetwork(list(body.dims), channels, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(stage): maps for stage, maps in enumerate(self.body(x))})


class ResizeInEvaluation(GeneralizedRCNNTransform):
    """Normalizes, resizes in evaluation alone (training views come in their size), and pads to a batch."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None):
        return (image, target) if self.training else super().resize(image, target)


def _widened(head: nn.Module, inputs: tuple, outputs: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], ...]:
    """What the head of the proposals gives, in float32 at least, also under autocast.

    torchvision computes proposals in this type and rounds the annotated boxes to it before it encodes what the second
    part learns: beyond column 1024 by up to 4 pixels in bfloat16, by half a pixel in float16.
    """
    return tuple([one.to(torch.promote_types(one.dtype, torch.float32)) for one in part] for part in outputs)


def build_detector(body: nn.Module, detector: Detector, num_classes: int) -> FasterRCNN:
    """The network: lists of images (3, H, W) in [0, 1], and targets in training, to losses or detections.

    Args:
        body: gives the maps of four stages, of widths `dims`.
        detector: heads and sizes.
        num_classes: without the background.
    """
    kind = MaskRCNN if detector.masks else FasterRCNN
    sizes = tuple((side,) for side in detector.anchors)
    model = kind(
        FeaturePyramid(body, detector.channels),
        num_classes + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, (_RATIOS,) * len(sizes)),
        rpn_post_nms_top_n_train=detector.proposals[0],
        rpn_post_nms_top_n_test=detector.proposals[1],
        rpn_nms_thresh=detector.proposals_nms,
        box_batch_size_per_image=detector.box_samples,
        box_score_thresh=detector.score,
        box_nms_thresh=detector.nms,
        box_detections_per_img=detector.detections,
    )
    model.get_submodule("rpn.head").register_forward_hook(_widened)
    model.transform = ResizeInEvaluation(detector.short_side, detector.long_side, list(MEAN), list(STD))
    return model
