"""Small figures: SVG and plotly from one description."""
