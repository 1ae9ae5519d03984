"""The documented name of `vheatir.integrations.huggingface`."""

from vheatir.integrations.huggingface import HubVHeatIR, HubVHeatUNet, HubVHeatVideoNet

__all__ = ["HubVHeatIR", "HubVHeatUNet", "HubVHeatVideoNet"]
