"""The documented name of `vheatir.integrations.huggingface`."""

from vheatir.integrations.huggingface import HubVHeatIR, HubVHeatUNet

__all__ = ["HubVHeatIR", "HubVHeatUNet"]
