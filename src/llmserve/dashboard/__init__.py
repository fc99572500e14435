"""The live dashboard's Python side. Its browser side is in `widgets/`, bundled into `static/`."""

from __future__ import annotations

from llmserve.dashboard.view import Dashboards, DashboardView, SessionLike

__all__ = ["DashboardView", "Dashboards", "SessionLike"]
