"""How controls look, and on which shell they answer."""

from __future__ import annotations

import ipywidgets
from ipywidgets.widgets.widget_bool import CheckboxStyle
from ipywidgets.widgets.widget_description import DescriptionStyle
from ipywidgets.widgets.widget_string import LabelStyle, TextStyle


def pin_comm(widget: ipywidgets.Widget) -> None:
    """Keep this widget's messages on the shell that the browser sent them to.

    ipykernel 7.4 moves a comm to the shell that published on it last; after a reply from a cell's
    thread a slider would wait for that cell to end. Other versions have no such hook.
    """
    comm = widget.comm
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


class Styles:
    """Layouts and styles, shared by all controls so that the saved state stays small."""

    def __init__(self) -> None:
        layout = ipywidgets.Layout
        self.plain = layout()
        self.wrapping = layout(flex_flow="row wrap", overflow="hidden")
        self.group = layout(display="flex", flex_flow="row wrap", overflow="hidden")
        self.wide = layout(width="430px")
        self.unit = layout(width="76px")
        self.check = layout(width="auto")
        self.slider = ipywidgets.SliderStyle(description_width="200px")
        self.text = DescriptionStyle(description_width="200px")
        self.line = TextStyle(description_width="200px")
        self.checkbox = CheckboxStyle(description_width="0px")
        self.label = LabelStyle()
        self.button = layout(width="auto", min_width="76px")
        self.press = ipywidgets.ButtonStyle()
        self.choice = layout(width="170px")
        self.short = DescriptionStyle(description_width="20px")
        self.full = layout(width="auto", min_width="0")
