"""How the bundled model was trained. Not in the wheel."""
