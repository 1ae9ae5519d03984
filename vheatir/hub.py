"""The documented name of `vheatir.integrations.huggingface`."""

from vheatir.integrations.huggingface import HubVHeatIR

__all__ = ["HubVHeatIR"]
