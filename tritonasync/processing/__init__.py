"""Pure numpy before and after a model: images, boxes, vectors. No I/O, no state, no server."""
