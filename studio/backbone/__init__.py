"""The adapter layer: one backbone, many adapters beside it, stacked and routed per row."""

from studio.backbone.backbone import Backbone
from studio.backbone.composition import Adapter
from studio.backbone.sites import Anatomy, Site

__all__ = ["Adapter", "Anatomy", "Backbone", "Site"]
