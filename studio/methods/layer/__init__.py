"""The adapter layer: one backbone, many adapters beside it, stacked and routed per row."""

from studio.methods.layer.adapter import Adapter
from studio.methods.layer.backbone import Backbone
from studio.methods.layer.sites import Anatomy, Site

__all__ = ["Adapter", "Anatomy", "Backbone", "Site"]
