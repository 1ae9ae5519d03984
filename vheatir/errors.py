"""The error a user can act on."""

from vheatir.backbone.errors import UserError

__all__ = ["UserError"]
