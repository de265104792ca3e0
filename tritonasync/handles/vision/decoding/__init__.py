"""From a detector's raw outputs to candidate boxes: the families of outputs that people have."""
