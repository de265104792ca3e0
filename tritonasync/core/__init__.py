"""Values, ports, errors, deadlines: every other layer may import them; they import none."""
