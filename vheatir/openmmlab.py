"""The documented name of `vheatir.integrations.openmmlab`."""

from vheatir.integrations.openmmlab import VHeatIRBackbone, register

__all__ = ["VHeatIRBackbone", "register"]
