"""The documented name of `vheatir.backbone.models.feature_maps`."""

from vheatir.backbone.models.feature_maps import ResidualMaps, build_features, load_features, residual_networks

__all__ = ["ResidualMaps", "build_features", "load_features", "residual_networks"]
